"""combine against float64 sums of deltas and PEFT's own combinations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import adaptool
import golden_cases
from adaptool.combinations import methods
from adaptool.engine.algebra import FactorAlgebra
from adaptool.layouts import decode
from adaptool.model.options import Machine
from adaptool.store.adapter_files import open_adapter
from golden_cases import BY_NAME, quietly
from tiny_models import build

# Adapters of one base each; different ranks, targets, scalings, dtypes.
LLAMA = ("plain", "every_linear", "rslora", "patterns", "alpha_negative", "embedding", "blocks")
STACKED = ("mixtral_experts", "mixtral_gate_up", "mixtral_down", "mixtral_attention")
PAIRS = [
    *itertools.combinations(LLAMA, 2),
    *itertools.combinations(STACKED, 2),
    ("gpt2", "lora_bias_gpt2"),
    ("convolutions", "convolutions_rslora"),
    ("linear_bfloat16", "ends_bfloat16"),
]
WEIGHTS = (0.71317, -1.41771)
RANKED = sorted(name for name, method in methods().items() if method.METHOD.needs_rank)

Deltas = dict[str, torch.Tensor]


def deltas_of(path: Path) -> Deltas:
    """Parameter -> scaled delta in float64, experts stacked."""
    algebra = FactorAlgebra(Machine(device="cpu"))
    found: Deltas = {}
    with open_adapter(path) as files:
        for delta in decode(files).deltas:
            if delta.tuner == "shift":
                value = algebra.factor(delta.roles["difference"])
                found[delta.parameter] = delta.terms.scaling * value
            else:
                products = [left @ right for left, right in algebra.products(delta)]
                found[delta.parameter] = delta.terms.scaling * torch.stack(products)
    return found


def _sum(paths: list[Path], weights: tuple[float, ...]) -> Deltas:
    total: Deltas = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, value in deltas_of(path).items():
            total[name] = total.get(name, torch.zeros_like(value)) + weight * value
    return total


def _made(names: tuple[str, ...], factory: pytest.TempPathFactory) -> list[Path]:
    return [golden_cases.make(BY_NAME[name], factory.getbasetemp()).adapter for name in names]


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_cat_is_the_weighted_sum_of_deltas(
    names: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To float32 rounding of the factors, in every module of either; no other has a change."""
    paths = _made(names, tmp_path_factory)
    result = adaptool.combine(*paths, weights=WEIGHTS, out=tmp_path / "out")
    assert result.exact
    assert result.relative_error == 0.0
    wanted, found = _sum(paths, WEIGHTS), deltas_of(tmp_path / "out")
    for name, value in wanted.items():
        assert (value - found[name]).norm() <= 2e-7 * value.norm(), name
    # PEFT's lora_bias is for all modules: those without one have zeros.
    assert not any(found[name].any() for name in found.keys() - wanted.keys())


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_svd_is_the_best_approximation(
    rank: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The Eckart-Young optimum of the weighted sum; cat at a rank is the same."""
    paths = _made(("every_linear", "rslora"), tmp_path_factory)
    result = adaptool.combine(
        *paths, weights=WEIGHTS, method="svd", rank=rank, out=tmp_path / "svd"
    )
    adaptool.combine(*paths, weights=WEIGHTS, rank=rank, out=tmp_path / "cat")
    wanted, found, same = (
        _sum(paths, WEIGHTS),
        *map(deltas_of, (tmp_path / "svd", tmp_path / "cat")),
    )
    lost = total = 0.0
    for name, value in wanted.items():
        tail = torch.linalg.svdvals(value)[..., rank:]
        error = (value - found[name]).norm()
        assert error <= tail.norm() + 1e-6 * value.norm(), name
        assert torch.equal(found[name], same[name])
        lost, total = lost + float(tail.norm()) ** 2, total + float(value.norm()) ** 2
    assert result.relative_error == pytest.approx((lost / total) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("method", sorted(methods()))
@pytest.mark.parametrize("name", ["every_linear", "mixtral_experts", "convolutions"])
def test_one_adapter_at_weight_one_is_that_adapter(
    method: str, name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For every method, with another adapter of weight 0 beside it or without."""
    (path,) = _made((name,), tmp_path_factory)
    for count in (1, 2):
        out = tmp_path / str(count)
        rank = 16 if method in RANKED else None
        weights = (1.0, 0.0)[:count]
        adaptool.combine(*[path] * count, weights=weights, method=method, rank=rank, out=out)
        wanted, found = deltas_of(path), deltas_of(out)
        assert wanted.keys() == found.keys()
        for parameter, value in wanted.items():
            assert (value - found[parameter]).norm() <= 1e-6 * value.norm(), parameter


def test_factors_of_one_scale_are_carried_bit_for_bit(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Equal coefficients become the scaling: even bfloat16 loses nothing."""
    (path,) = _made(("linear_bfloat16",), tmp_path_factory)
    adaptool.combine(path, path, out=tmp_path / "out", dtype="keep")
    old = load_file(path / "adapter_model.safetensors")
    new = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, value in old.items():
        axis = 0 if "lora_A" in name else 1
        assert torch.equal(new[name], torch.cat([value, value], dim=axis)), name


@pytest.mark.parametrize("method", sorted(methods()))
def test_bytes_do_not_depend_on_threads(
    method: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One worker or three, run again: the same file."""
    paths = _made(("every_linear", "every_linear"), tmp_path_factory)
    contents = set()
    for place, threads in enumerate((1, 3, 3)):
        out = tmp_path / str(place)
        rank = 4 if method in RANKED else None
        options = {"density": 0.6, "seed": 5, "weights": WEIGHTS, "rank": rank}
        adaptool.combine(*paths, method=method, out=out, threads=threads, **options)
        contents.add((out / "adapter_model.safetensors").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("method", ["svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_peft_agrees_where_it_is_right(
    method: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT's `*_svd` types at density 1, where no draw is made and nothing is pruned.

    ties and dare_ties elect signs: PEFT before it weighs the deltas, the paper's task vectors are
    what is summed, so both agree at equal weights only.
    """
    weights = (0.7, 0.7) if "ties" in method else (0.7, -0.4)
    paths = _made(("plain", "plain"), tmp_path_factory)
    second = tmp_path / "second"
    _reseeded(paths[0], second)
    with quietly():
        model = PeftModel.from_pretrained(build("llama"), paths[0], adapter_name="a")
        model.load_adapter(second, adapter_name="b")
        kind = method if method == "svd" else f"{method}_svd"
        more = {} if method == "svd" else {"density": 1.0}
        model.add_weighted_adapter(
            ["a", "b"], list(weights), "c", combination_type=kind, svd_rank=3, **more
        )
    adaptool.combine(paths[0], second, weights=weights, method=method, rank=3, out=tmp_path / "out")
    found = deltas_of(tmp_path / "out")
    for name, module in model.base_model.model.named_modules():
        if "c" in getattr(module, "lora_A", {}):
            theirs = module.get_delta_weight("c").double()
            ours = found[f"{name}.weight"][0]
            assert (theirs - ours).norm() <= 2e-5 * theirs.norm(), name


def _reseeded(path: Path, out: Path) -> None:
    """Another adapter of the same shapes."""
    out.mkdir()
    generator = torch.Generator().manual_seed(9)
    tensors = load_file(path / "adapter_model.safetensors")
    made = {name: torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
    save_file(made, out / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((path / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config))
