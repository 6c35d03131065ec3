"""The two orders of lora_B's columns where experts are stacked, against the plain sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import adaptool
from adaptool.errors import InputError
from adaptool.findings import Code
from family_models import FAMILIES, build
from golden_cases import quietly, tensors_of, train

EXPERTS, RANK, ALPHA = 4, 3, 6
# (experts, out, rank) and (experts, rank, in) of the delta: Unsloth before 2026.9.6 takes both
# factors for (expert, rank) pairs, PEFT takes lora_B for (rank, expert).
SUMS = {"unsloth": "oer,eri->eoi", "peft": "ore,eri->eoi"}
FAMILY = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}


@pytest.fixture(params=["mixtral", "qwen3_moe", "gpt_oss"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A family's name, its base, and an adapter of its experts."""
    name: str = request.param
    model = build(FAMILIES[name])
    with quietly():
        model.save_pretrained(tmp_path / "base")
        options: dict[str, Any] = {"target_parameters": list(FAMILIES[name].parameters)}
        tuned = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[], **options)
        )
        train(tuned)
        tuned.save_pretrained(tmp_path / "adapter")
    return name, tmp_path / "base", tmp_path / "adapter"


def _expected(name: str, adapter: Path, packing: str) -> dict[str, torch.Tensor]:
    """What is added to each tensor on disk, by plain einsum over the file's factors."""
    factors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for layer in range(2):
        module = f"model.layers.{layer}.mlp.experts"
        gate_up, down = (
            _delta(factors, f"base_model.model.{module}{depth}", packing)
            for depth in (".base_layer", "")
        )
        if name == "gpt_oss":
            found[f"{module}.gate_up_proj"] = gate_up.transpose(1, 2)
            found[f"{module}.down_proj"] = down.transpose(1, 2)
            continue
        where = module.replace("mlp", "block_sparse_moe") if name == "mixtral" else module
        gate, up = gate_up.chunk(2, dim=1)
        for part, delta in zip(FAMILY[name], (gate, up, down), strict=True):
            for expert in range(EXPERTS):
                found[f"{where}.{expert}.{part}.weight"] = delta[expert]
    return found


def _delta(factors: dict[str, torch.Tensor], key: str, packing: str) -> torch.Tensor:
    a, b = (factors[f"{key}.lora_{factor}.weight"].double() for factor in "AB")
    shape = (EXPERTS, RANK) if packing == "unsloth" else (RANK, EXPERTS)
    split = b.reshape(b.shape[0], *shape)
    return torch.einsum(SUMS[packing], split, a.reshape(EXPERTS, RANK, -1)) * (ALPHA / RANK)


def _check(name: str, base: Path, adapter: Path, out: Path, packing: str) -> None:
    ours, before = tensors_of(out), tensors_of(base)
    deltas = _expected(name, adapter, packing)
    assert {key for key in before if not torch.equal(ours[key], before[key])} == set(deltas)
    for key, delta in deltas.items():
        assert torch.equal(ours[key], (before[key].double() + delta).float()), key


@pytest.mark.parametrize("packing", SUMS)
def test_merge_adds_the_product_in_the_packing_asked_for(
    packing: str, pair: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Bit for bit, and verify reads the packing from the receipt."""
    name, base, adapter = pair
    adaptool.merge(base, adapter, tmp_path / "out", expert_packing=packing)
    _check(name, base, adapter, tmp_path / "out", packing)
    assert adaptool.verify(base, adapter, tmp_path / "out", exact=True).ok
    other = "peft" if packing == "unsloth" else "unsloth"
    assert not adaptool.verify(base, adapter, tmp_path / "out", expert_packing=other).ok


@pytest.mark.parametrize(
    ("recorded", "packing"), [("grouped_by_expert", "unsloth"), ("rank_major", "peft")]
)
def test_packing_that_unsloth_recorded_counts(
    recorded: str, packing: str, pair: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """The adapter's own record wins over the switch, and a note says so."""
    name, base, adapter = pair
    _record(adapter, recorded)
    for asked in SUMS:
        out = tmp_path / asked
        result = adaptool.merge(base, adapter, out, expert_packing=asked)
        _check(name, base, adapter, out, packing)
        noted = [found for found in result.findings if found.field == "lora_B_layout"]
        assert [found.code for found in noted] == ([] if asked == packing else [Code.PEFT_QUIRK])


def test_packing_that_nobody_knows_is_refused(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    """A third order would be read wrongly by both."""
    _, base, adapter = pair
    _record(adapter, "of_tomorrow")
    with pytest.raises(InputError, match="of_tomorrow") as caught:
        adaptool.merge(base, adapter, tmp_path / "out")
    assert caught.value.field == "lora_B_layout"


def _record(adapter: Path, packing: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_B_layout": packing}))
