"""What PEFT computes with a combined adapter: the model with W + sum of w (W_i - W).

W_i is what PEFT merges of adapter i alone. Nothing here is read with adaptool.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import adaptool
from adaptool.errors import MismatchError
from adaptool.model.options import Strength
from golden_cases import Tensors, load, quietly, save_base, train
from tiny_models import answer, build

Options = Mapping[str, Any]
# Options of one kind each, by model; every pair of one model can be combined.
EXPERTS = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
KINDS: Mapping[str, Mapping[str, Options]] = {
    "opt": {
        "plain": {"target_modules": ["q_proj", "v_proj"]},
        "rank_stable": {"target_modules": ["k_proj", "fc1"], "use_rslora": True, "r": 5},
        "every_bias": {"target_modules": ["q_proj"], "bias": "all"},
        "own_bias": {"target_modules": ["q_proj", "fc1"], "bias": "lora_only"},
        "other_bias": {"target_modules": ["v_proj", "fc1"], "bias": "lora_only"},
        "lora_bias": {"target_modules": ["q_proj", "fc2"], "lora_bias": True},
        "saved_norm": {"target_modules": ["q_proj"], "modules_to_save": ["final_layer_norm"]},
    },
    "llama": {
        "plain": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q_proj": 3}},
        "ends": {"target_modules": ["embed_tokens", "q_proj"]},
        "expression": {"target_modules": r".*layers\.1\..*(q|down)_proj"},
        "saved_ends": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
        "saved_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9, 60]},
        "other_rows": {"target_modules": ["up_proj"], "trainable_token_indices": [9, 5]},
        "by_name": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    },
    "mixtral": {
        "experts": {"target_modules": [], "target_parameters": EXPERTS},
        "down": {"target_modules": ["q_proj"], "target_parameters": EXPERTS[1:]},
        "attention": {"target_modules": ["q_proj", "o_proj"], "use_rslora": True},
    },
    "gpt2": {
        "plain": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        "biased": {"target_modules": ["c_proj"], "fan_in_fan_out": True, "bias": "all"},
    },
    "bert": {
        "plain": {"target_modules": ["query"]},
        "biased": {"target_modules": ["value"], "bias": "all"},
    },
    "convnet": {
        "kernels": {"target_modules": ["conv1", "conv2", "pointwise"]},
        "ends": {"target_modules": ["conv2", "embed", "out"], "use_rslora": True},
    },
    "attention": {
        "whole": {"target_modules": ["mha", "out"]},
        "lower": {"target_modules": ["mha"], "r": 2},
    },
}
# merge does not know the second name of a masked language model's output bias.
UNMERGED = frozenset({"bert"})
WEIGHTS = ((0.5, -0.3), (1.0, 1.0), (0.25, 0.75))
# Both in one layer: PEFT refuses the LoRA of an embedding whose rows are trained.
IMPOSSIBLE = {frozenset({"ends", "rows"}), frozenset({"ends", "other_rows"})}


@dataclass(frozen=True)
class Trained:
    """An adapter on disk, and the tensors of the base that PEFT merged it into."""

    path: Path
    merged: Tensors


@cache
def _base(model: str, root: Path) -> Path:
    with quietly():
        save_base(build(model), root / f"base-{model}")
    return root / f"base-{model}"


@cache
def _trained(model: str, kind: str, seed: int, root: Path) -> Trained:
    path = root / f"combined-{model}-{kind}-{seed}"
    options = {"r": 3, "lora_alpha": 7, **KINDS[model][kind]}
    with quietly():
        tuned = get_peft_model(load(model, _base(model, root)), LoraConfig(**options))
        train(tuned, seed)
        tuned.save_pretrained(path)
        merged = _in_peft(model, path, root).merge_and_unload()
    return Trained(path, _state(merged))


def _in_peft(model: str, path: Path, root: Path) -> PeftModel:
    """The adapted model; a warning of PEFT about keys fails."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = PeftModel.from_pretrained(load(model, _base(model, root)), path)
    assert not [each for each in caught if "missing adapter keys" in str(each.message)]
    return tuned.eval()


def _state(model: nn.Module) -> Tensors:
    return {name: value.double() for name, value in model.state_dict().items()}


def _wanted(
    model: str, adapters: list[Trained], weights: tuple[float, ...], root: Path
) -> nn.Module:
    """The model with the weighted changes of all adapters in it."""
    found = load(model, _base(model, root))
    state = _state(found)
    for name, value in state.items():
        changes = [
            weight * (adapter.merged[name] - value)
            for adapter, weight in zip(adapters, weights, strict=True)
        ]
        state[name] = value + sum(changes)
    found.load_state_dict(state)
    return found.eval()


def _agrees(model: str, out: Path, wanted: nn.Module, root: Path) -> None:
    plain = answer(load(model, _base(model, root)), model)
    expected = answer(wanted, model)
    found = answer(_in_peft(model, out, root), model)
    assert (found - expected).abs().max() <= 2e-5 * (expected - plain).abs().max()


def _pairs() -> list[tuple[str, str, str]]:
    return [
        (model, one, other)
        for model, kinds in KINDS.items()
        for one, other in itertools.product(kinds, repeat=2)
        if frozenset({one, other}) not in IMPOSSIBLE
    ]


def _drawn(count: int, seed: int) -> list[tuple[str, str, str, tuple[float, float]]]:
    """Pairs of options with weights; each model has a share."""
    draw = random.Random(seed)
    by_model: dict[str, list[tuple[str, str, str]]] = {}
    for pair in _pairs():
        by_model.setdefault(pair[0], []).append(pair)
    return [
        (*pair, draw.choice(WEIGHTS))
        for pairs in by_model.values()
        for pair in draw.sample(pairs, min(count, len(pairs)))
    ]


NAMED = [
    ("opt", "own_bias", "other_bias", (0.5, 0.5)),
    ("opt", "every_bias", "plain", (-0.3, 1.0)),
    ("opt", "lora_bias", "rank_stable", (0.5, -0.3)),
    ("llama", "saved_head", "saved_ends", (0.7, -0.4)),
    ("llama", "rows", "other_rows", (0.5, -0.3)),
    ("llama", "by_name", "plain", (0.5, -0.3)),
    ("mixtral", "experts", "down", (0.5, -0.3)),
    ("gpt2", "plain", "biased", (1.0, 0.5)),
    ("bert", "biased", "plain", (0.5, 1.0)),
    ("convnet", "kernels", "ends", (0.5, -0.3)),
    ("attention", "whole", "lower", (0.5, -0.3)),
]


def _law(case: tuple[str, str, str, tuple[float, float]], root: Path, out: Path) -> None:
    model, one, other, weights = case
    adapters = [_trained(model, one, 1, root), _trained(model, other, 2, root)]
    wanted = _wanted(model, adapters, weights, root)
    base = _base(model, root)
    first, second = (adapter.path for adapter in adapters)
    adaptool.combine(first, second, weights=weights, base=base, out=out / "sum", dtype="float32")
    _agrees(model, out / "sum", wanted, root)
    if model in UNMERGED:
        return
    adaptool.merge(base, out / "sum", out / "once", dtype="float32")
    more = [Strength(second, weights[1])]
    adaptool.merge(base, first, out / "both", weight=weights[0], add=more, dtype="float32")
    once, both = (_state(load(model, out / name)) for name in ("once", "both"))
    for name, value in both.items():
        assert torch.allclose(once[name], value, atol=2e-6), name


@pytest.mark.parametrize("case", NAMED, ids=lambda case: "-".join(map(str, case[:3])))
def test_the_sum_in_peft_is_the_sum_of_changes(
    case: tuple[str, str, str, tuple[float, float]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """PEFT's forward of the combined adapter; and merging it is merging the two."""
    _law(case, tmp_path_factory.getbasetemp(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", _drawn(20, seed=11), ids=lambda case: "-".join(map(str, case)))
def test_every_pair_of_options_sums_in_peft(
    case: tuple[str, str, str, tuple[float, float]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The same for pairs drawn from all, in both orders and with themselves."""
    _law(case, tmp_path_factory.getbasetemp(), tmp_path)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("opt", "every_bias"), ("llama", "saved_ends"), ("llama", "rows"), ("opt", "lora_bias")],
)
@pytest.mark.parametrize("halves", [False, True])
def test_one_adapter_alone_is_itself(
    model: str, kind: str, halves: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As it is, and as a half and a half: the weights add up to 1, so no base is needed."""
    root = tmp_path_factory.getbasetemp()
    adapter = _trained(model, kind, 1, root)
    weights = (0.5, 0.5) if halves else (1.0,)
    adaptool.combine(*[adapter.path] * len(weights), weights=weights, out=tmp_path / "out")
    wanted = _wanted(model, [adapter], (1.0,), root)
    _agrees(model, tmp_path / "out", wanted, root)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("opt", "every_bias"),
        ("opt", "lora_bias"),
        ("llama", "saved_ends"),
        ("llama", "rows"),
        ("mixtral", "down"),
        ("attention", "whole"),
    ],
)
def test_resized_to_full_rank_it_is_itself(
    model: str, kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In PEFT's forward, whole tensors included."""
    root = tmp_path_factory.getbasetemp()
    adapter = _trained(model, kind, 1, root)
    adaptool.resize(adapter.path, tmp_path / "out", energy=1.0)
    _agrees(model, tmp_path / "out", _wanted(model, [adapter], (1.0,), root), root)


@pytest.mark.parametrize(
    "case",
    [
        ("llama", "saved_head", "saved_ends", (0.7, -0.4)),
        ("llama", "saved_head", "saved_head", (1.0, -0.999)),
        ("opt", "own_bias", "other_bias", (0.5, 0.5)),
        ("opt", "plain", "every_bias", (1.0, 0.5)),
        ("llama", "rows", "other_rows", (0.5, 0.5)),
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def test_weights_that_do_not_add_up_ask_for_the_base(
    case: tuple[str, str, str, tuple[float, float]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Exit 4 with `--base BASE`: W has its share in W + sum of w (V - W), and it is not divided."""
    model, *kinds, weights = case
    root = tmp_path_factory.getbasetemp()
    paths = [_trained(model, kind, 1 + place, root).path for place, kind in enumerate(kinds)]
    with pytest.raises(MismatchError) as caught:
        adaptool.combine(*paths, weights=weights, out=tmp_path / "out")
    assert str(caught.value.code) == "replaced-contradict"
    assert caught.value.hint == "--base BASE"
    assert not (tmp_path / "out").exists()
