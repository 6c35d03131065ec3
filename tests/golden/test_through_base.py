"""DoRA through its base: against PEFT's merge in float64 and torch's full SVD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import adaptool
import golden_cases
from adaptool.engine import extraction, passes
from adaptool.engine.algebra import FactorAlgebra
from adaptool.errors import MismatchError
from adaptool.layouts import decode
from adaptool.model.adapter import Form
from adaptool.model.options import Machine
from adaptool.store.adapter_files import open_adapter
from golden_cases import BY_NAME, Made, quietly, save_base, tensors_of
from tiny_models import answer, build

NAMES = (
    "dora",
    "dora_rslora",
    "dora_gpt2",
    "dora_ends",
    "dora_convolutions",
    "dora_phi3",
    "dora_bfloat16",
)
RANK = 2
Matrices: TypeAlias = dict[str, torch.Tensor]


def _made(name: str, factory: pytest.TempPathFactory) -> Made:
    return golden_cases.make(BY_NAME[name], factory.getbasetemp())


def _changes(made: Made, where: Path) -> Matrices:
    """f(W) - W of every weight that PEFT changes, (out, in) or as it is stored."""
    base = tensors_of(made.base)
    merged = golden_cases.peft_merged(made, where, torch.float64)
    return {
        name: (value.double() - base[name].double()).flatten(1)
        for name, value in merged.items()
        if value.dim() > 1 and not torch.equal(value.double(), base[name].double())
    }


def _products(adapter: Path, *, stored_transposed: bool = False) -> Matrices:
    """Parameter -> scaled product of the factors, laid out as the base's tensor."""
    algebra = FactorAlgebra(Machine(device="cpu"))
    found = {}
    with open_adapter(adapter) as files:
        for delta in decode(files).deltas:
            if delta.tuner == "shift":
                continue
            assert delta.tuner == "lora"
            ((left, right),) = algebra.products(delta)
            product = delta.terms.scaling * left @ right
            turned = stored_transposed or delta.terms.form is Form.EMBEDDING
            found[delta.parameter] = product.T if turned else product
    return found


def _norm(matrices: Matrices) -> float:
    return float(sum(value.square().sum() for value in matrices.values()) ** 0.5)


def _cut(matrix: torch.Tensor, rank: int) -> float:
    """The squared error of the best approximation."""
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum())


def _check_optimum(wanted: Matrices, found: Matrices, rank: int) -> float:
    """Every product is as near as its rank allows, to float32; the relative error of all."""
    assert wanted.keys() == found.keys()
    best = 0.0
    for name, matrix in wanted.items():
        least = _cut(matrix, rank)
        error = float((matrix - found[name]).norm())
        assert error <= least**0.5 + 1e-6 * float(matrix.norm()), name
        best += least
    return float(best**0.5) / _norm(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_dora_becomes_the_best_lora_of_its_rank(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each module at the Eckart-Young optimum of PEFT's change, and the error said is that."""
    made = _made(name, tmp_path_factory)
    wanted = _changes(made, tmp_path / "merged")
    result = adaptool.convert(made.adapter, tmp_path / "out", to="lora", base=made.base, rank=RANK)
    if made.case.dtype is torch.float32:
        turned = made.case.model == "gpt2"
        found = _products(tmp_path / "out", stored_transposed=turned)
        best = _check_optimum(wanted, found, RANK)
    else:  # written in the adapter's own 16 bits
        best = (sum(_cut(matrix, RANK) for matrix in wanted.values()) ** 0.5) / _norm(wanted)
    assert result.relative_error == pytest.approx(best, rel=1e-6)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["r"]) == (False, RANK)
    assert {str(finding.code) for finding in result.findings} >= {"written-as-lora"}


@pytest.mark.parametrize("name", ["dora", "dora_convolutions", "dora_ends"])
def test_all_the_energy_is_the_same_model(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At energy 1 PEFT's own loader of the LoRA answers as the DoRA did."""
    made = _made(name, tmp_path_factory)
    result = adaptool.convert(made.adapter, tmp_path / "out", to="lora", base=made.base, energy=1.0)
    assert result.relative_error is not None
    assert result.relative_error < 1e-12
    with quietly():
        model = golden_cases.load(made.case.model, made.base)
        adapted = PeftModel.from_pretrained(model, tmp_path / "out").eval()
        found = answer(adapted, made.case.model)
    assert torch.allclose(found, made.truth, atol=2e-5, rtol=2e-5)


def test_energy_is_kept_with_the_least_rank(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One rank less would keep too little of f(W) - W."""
    made = _made("dora", tmp_path_factory)
    wanted = _changes(made, tmp_path / "merged")
    adaptool.convert(made.adapter, tmp_path / "out", to="lora", base=made.base, energy=0.9)
    with open_adapter(tmp_path / "out") as files:
        ranks = {delta.parameter: delta.terms.rank or 0 for delta in decode(files).deltas}
    assert ranks.keys() == wanted.keys()
    for name, matrix in wanted.items():
        squares = torch.linalg.svdvals(matrix).square()
        kept = squares.cumsum(0) / squares.sum()
        assert kept[ranks[name] - 1] >= 0.9 > kept[ranks[name] - 2], name


def test_the_bytes_do_not_depend_on_tiles_or_threads(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiles of 3 rows and parts of rows give the same factors to float64's rounding."""
    made = _made("dora_gpt2", tmp_path_factory)
    common = {"to": "lora", "base": made.base, "rank": RANK}
    adaptool.convert(made.adapter, tmp_path / "a", threads=1, **common)
    adaptool.convert(made.adapter, tmp_path / "b", threads=2, **common)
    name = "adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    monkeypatch.setattr(extraction, "TILE", 100)
    adaptool.convert(made.adapter, tmp_path / "c", **common)
    one, other = (_products(tmp_path / each, stored_transposed=True) for each in "ac")
    for parameter, matrix in one.items():
        assert (matrix - other[parameter]).norm() <= 1e-6 * matrix.norm()


def _summed(made: list[Made], weights: list[float], where: Path) -> Matrices:
    total: Matrices = {}
    for place, (each, weight) in enumerate(zip(made, weights, strict=True)):
        for name, matrix in _changes(each, where / str(place)).items():
            total[name] = total.get(name, torch.zeros_like(matrix)) + weight * matrix
    return total


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -1.3]], ids=str)
def test_dora_and_lora_are_summed_to_the_best_of_a_rank(
    weights: list[float], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A module that one of them has as DoRA is factored once, from the exact weighted sum."""
    made = [_made(name, tmp_path_factory) for name in ("dora_rslora", "every_linear")]
    for each in made[1:]:
        for name, tensor in tensors_of(each.base).items():
            assert torch.equal(tensor, tensors_of(made[0].base)[name])
    wanted = _summed(made, weights, tmp_path / "merged")
    result = adaptool.combine(
        *(each.adapter for each in made),
        out=tmp_path / "out",
        weights=weights,
        base=made[0].base,
        rank=3,
    )
    best = _check_optimum(wanted, _products(tmp_path / "out"), 3)
    assert result.relative_error == pytest.approx(best, rel=1e-5)
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert [entry["role"] for entry in receipt["inputs"]] == ["base", "adapter", "adapter"]


def test_two_doras_are_summed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each takes its norms from the unmerged base."""
    made = [_made(name, tmp_path_factory) for name in ("dora", "dora_rslora")]
    wanted = _summed(made, [0.5, 0.5], tmp_path / "merged")
    adaptool.combine(
        *(each.adapter for each in made),
        out=tmp_path / "out",
        weights=[0.5, 0.5],
        base=made[0].base,
        rank=4,
    )
    _check_optimum(wanted, _products(tmp_path / "out"), 4)


def test_combine_says_what_it_needs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A base, a rank; methods on factors want a LoRA first. Nothing is written."""
    made = _made("dora", tmp_path_factory)
    both, out = (made.adapter, made.adapter), tmp_path / "out"
    with pytest.raises(MismatchError) as error:
        adaptool.combine(*both, out=out)
    assert "--base" in (error.value.hint or "")
    with pytest.raises(MismatchError) as error:
        adaptool.combine(*both, out=out, base=made.base)
    assert "--rank" in (error.value.hint or "")
    with pytest.raises(MismatchError) as error:
        adaptool.combine(*both, out=out, base=made.base, rank=2, method="ties")
    assert "convert" in (error.value.hint or "")
    assert not out.exists()


def test_convert_says_what_it_needs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A base, then a rank: the change is of full rank, so none is exact."""
    made = _made("dora", tmp_path_factory)
    with pytest.raises(MismatchError) as error:
        adaptool.convert(made.adapter, tmp_path / "out", to="lora", rank=2)
    assert "--base" in (error.value.hint or "")
    with pytest.raises(MismatchError) as error:
        adaptool.convert(made.adapter, tmp_path / "out", to="lora", base=made.base)
    assert "--rank" in (error.value.hint or "")
    other = _made("dora_gpt2", tmp_path_factory)
    with pytest.raises(MismatchError, match="no such module"):
        adaptool.convert(made.adapter, tmp_path / "out", to="lora", base=other.base, rank=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES[:-1])
def test_resized_dora_states_the_error_of_the_merged_weights(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """|f(W) - f'(W)| / |f(W) - W| by module and in total, f' as PEFT merges the result."""
    made = _made(name, tmp_path_factory)
    without = adaptool.resize(made.adapter, tmp_path / "a", rank=RANK, dtype="float32")
    result = adaptool.resize(
        made.adapter, tmp_path / "out", rank=RANK, dtype="float32", base=made.base
    )
    weights = "adapter_model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()
    wanted = _changes(made, tmp_path / "merged")
    found = _changes(Made(made.case, made.base, tmp_path / "out", made.truth), tmp_path / "less")
    modules = {f"{module.module}.weight": module for module in result.modules}
    assert modules.keys() == wanted.keys()
    apart = {each: wanted[each] - found[each] for each in wanted}
    for each, module in modules.items():
        error = float(apart[each].norm() / wanted[each].norm())
        assert module.relative_error == pytest.approx(error, rel=1e-5, abs=1e-6), each
    assert result.relative_error == pytest.approx(_norm(apart) / _norm(wanted), rel=1e-5)
    codes = [{str(each.code) for each in run.findings} for run in (without, result)]
    assert "dora-direction" in codes[0]
    assert "dora-direction" not in codes[1]


def test_resize_compares_in_blocks(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that end inside of rows see every element once."""
    made = _made("dora_convolutions", tmp_path_factory)
    common = {"rank": 1, "base": made.base, "dry_run": True}
    one = adaptool.resize(made.adapter, tmp_path / "no", **common)
    monkeypatch.setattr(passes, "BLOCK_ELEMENTS", 37)
    other = adaptool.resize(made.adapter, tmp_path / "no", **common)
    for left, right in zip(one.modules, other.modules, strict=True):
        assert left.relative_error == pytest.approx(right.relative_error, rel=1e-9)
    assert not (tmp_path / "no").exists()


def _is_kept(name: str) -> bool:
    """All of q_proj, of down_proj only the factors."""
    return "q_proj" in name or ("down_proj" in name and "magnitude" not in name)


def test_mixed_adapters_keep_what_is_lora(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without magnitudes in some modules those are truncated, and one error is of both kinds."""
    made = _made("dora", tmp_path_factory)
    folder = tmp_path / "mixed"
    folder.mkdir()
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    kept = {name: value for name, value in tensors.items() if _is_kept(name)}
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["q_proj", "down_proj"], "use_dora": False})
    )
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    full = adaptool.convert(folder, tmp_path / "full", to="lora", base=made.base, rank=64)
    less = adaptool.convert(folder, tmp_path / "less", to="lora", base=made.base, rank=RANK)
    assert full.relative_error is not None
    assert full.relative_error < 1e-12
    wanted, found = _products(tmp_path / "full"), _products(tmp_path / "less")
    best = _check_optimum(wanted, found, RANK)
    assert less.relative_error == pytest.approx(best, rel=1e-5)


SLICED = {
    "phi3": ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"),
    "llama": ("self_attn.qkv_proj", "mlp.gate_up_proj"),
    "gpt2": ("attn.k_proj",),
    "gpt_neox": ("attention.q_proj", "attention.v_proj"),
}
WHERE = {
    "phi3": "model.layers.0",
    "llama": "model.layers.0",
    "gpt2": "transformer.h.0",
    "gpt_neox": "gpt_neox.layers.0",
}
OUT = {
    "qkv_proj": 64,
    "gate_up_proj": 96,
    "up_proj": 48,
    "q_proj": 32,
    "k_proj": 32,
    "v_proj": 32,
}


def _sliced(model: str, folder: Path) -> Path:
    torch.manual_seed(5)
    tensors = {}
    for module in SLICED[model]:
        last = module.rpartition(".")[2]
        out = 16 if (model, last) == ("phi3", "v_proj") else OUT[last]
        key = f"base_model.model.{WHERE[model]}.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(3, 32)
        tensors[f"{key}.lora_B.weight"] = torch.randn(out, 3)
        tensors[f"{key}.lora_magnitude_vector"] = torch.rand(out) + 0.5
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "peft_version": "0.21.2"}
    config["use_dora"] = True
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("model", sorted(SLICED))
def test_parts_of_fused_tensors_and_fused_parts(model: str, tmp_path: Path) -> None:
    """q, k, v inside of a fused tensor, by heads and in columns; a fused delta on three tensors.

    At full rank the LoRA, still of the adapter's own modules, merges to the DoRA's weights.
    """
    save_base(build(model), tmp_path / "base")
    adapter = _sliced(model, tmp_path / "adapter")
    base = tmp_path / "base"
    result = adaptool.convert(adapter, tmp_path / "out", to="lora", base=base, rank=64)
    assert result.module_count == len(SLICED[model])
    adaptool.merge(base, adapter, tmp_path / "one")
    adaptool.merge(base, tmp_path / "out", tmp_path / "other")
    before, wanted = tensors_of(base), tensors_of(tmp_path / "one")
    changed = 0
    for name, value in tensors_of(tmp_path / "other").items():
        norm = float((wanted[name] - before[name]).norm())
        assert (value - wanted[name]).norm() <= 2e-6 * norm + 1e-30, name
        changed += norm > 0
    assert changed
    resized = adaptool.resize(adapter, tmp_path / "less", base=base, rank=3, dry_run=True)
    assert resized.relative_error < 1e-12


def test_rows_are_written_in_the_adapters_dtype(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bfloat16 adapter gives bfloat16 factors, as other truncations do."""
    made = _made("dora_bfloat16", tmp_path_factory)
    adaptool.convert(made.adapter, tmp_path / "out", to="lora", base=made.base, rank=RANK)
    stored = load_file(made.adapter / "adapter_model.safetensors")
    dtypes = {value.dtype for name, value in stored.items() if "lora_A" in name}
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.dtype for value in found.values()} == dtypes
