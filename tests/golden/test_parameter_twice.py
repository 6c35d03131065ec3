"""An adapter that brings one parameter under two names, as PEFT itself saves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import InputError
from adaptool.model.options import Strength
from golden_cases import Case, Made, make, peft_merged, tensors_of

Q_V = ["q_proj", "v_proj"]
SAVED = ["lm_head", "embed_tokens"]
_BIAS = {"r": 2, "target_modules": Q_V, "bias": "all"}
TWICE = (
    Case(
        "twice_saved",
        "llama",
        {"r": 2, "target_modules": Q_V, "modules_to_save": SAVED},
        save={"save_embedding_layers": True},
    ),
    Case("twice_bias", "opt", {**_BIAS, "modules_to_save": ["fc1"]}),
    # A saved module with modules inside: `mlp.modules_to_save.fc1.bias` names no adapter `fc1`.
    Case("twice_nested", "vit", {**_BIAS, "modules_to_save": ["mlp"]}),
)


def _made(case: Case, factory: pytest.TempPathFactory) -> Made:
    made = make(case, factory.getbasetemp())
    names = load_file(made.adapter / "adapter_model.safetensors")
    assert any(".modules_to_save." in name for name in names), "PEFT writes no twins any more"
    return made


@pytest.mark.parametrize("case", TWICE, ids=lambda case: case.name)
@pytest.mark.parametrize("weight", [0.5, -0.25])
def test_its_weight_counts_once(
    case: Case, weight: float, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """W + w (PEFT's merge - W), in every tensor; alone, and beside the same adapter."""
    made = _made(case, tmp_path_factory)
    base, merged = tensors_of(made.base), peft_merged(made, tmp_path / "peft")
    others = [Strength(made.adapter, 0.5)]
    adaptool.merge(made.base, made.adapter, tmp_path / "one", weight=weight)
    adaptool.merge(made.base, made.adapter, tmp_path / "two", weight=weight, add=others)
    for out, factor in ((tmp_path / "one", weight), (tmp_path / "two", weight + 0.5)):
        for name, value in tensors_of(out).items():
            wanted = base[name] + factor * (merged[name] - base[name])
            assert torch.allclose(value, wanted, atol=2e-6), (out.name, name)


def test_values_that_differ_are_refused_and_nothing_is_written(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit 3, naming both, whichever command reads them."""
    made = _made(TWICE[0], tmp_path_factory)
    held = load_file(made.adapter / "adapter_model.safetensors")
    held["base_model.model.lm_head.modules_to_save.weight"][-1, -1] += 1
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    save_file(held, spoilt / "adapter_model.safetensors", {"format": "pt"})
    config = (made.adapter / "adapter_config.json").read_text()
    (spoilt / "adapter_config.json").write_text(config)
    out = tmp_path / "out"
    for run in (
        lambda: adaptool.merge(made.base, spoilt, out),
        lambda: adaptool.merge(made.base, spoilt, out, weight=0.5),
        lambda: adaptool.combine(spoilt, out=out),
        lambda: adaptool.resize(spoilt, out, rank=1),
    ):
        with pytest.raises(InputError, match=r"lm_head.modules_to_save") as caught:
            run()
        assert str(caught.value.code) == "slot-taken-twice"
        assert not out.exists()


def test_empty_tensors_of_saved_modules_are_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """ZeRO-3 leaves `[0]` where weights were not gathered: validate says error, others exit 3."""
    made = _made(TWICE[1], tmp_path_factory)
    held = load_file(made.adapter / "adapter_model.safetensors")
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    emptied = {
        name: torch.zeros(0) if ".fc1." in name and name.endswith("weight") else value
        for name, value in held.items()
    }
    save_file(emptied, hollow / "adapter_model.safetensors", {"format": "pt"})
    config = (made.adapter / "adapter_config.json").read_text()
    (hollow / "adapter_config.json").write_text(config)
    found = adaptool.validate(hollow)
    assert not found.ok
    assert "zero-size" in {str(finding.code) for finding in found.findings}
    out = tmp_path / "out"
    for run in (
        lambda: adaptool.merge(made.base, hollow, out),
        lambda: adaptool.combine(hollow, out=out),
        lambda: adaptool.resize(hollow, out, rank=1),
    ):
        with pytest.raises(InputError, match=r"\[0\]"):
            run()
        assert not out.exists()
