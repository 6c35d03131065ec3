"""`convert --to lora --init-adapter`: adapters whose initialisation changed the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import adaptool
from adaptool.errors import MismatchError
from golden_cases import quietly
from tiny_models import answer, build

SWITCHES = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_random": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"v_proj": 5},
    },
    "rslora_patterns": {
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"v_proj": 5},
    },
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_plain_lora_on_the_unmodified_base_is_the_trained_model(
    switch: str, tmp_path: Path
) -> None:
    """PEFT loads the result onto the untouched base: the same answer as the trained model's.

    PEFT refuses rsLoRA with patterns in its own conversion; the forward is judge there too.
    """
    torch.manual_seed(0)
    model = build("llama")
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **SWITCHES[switch]}
    with quietly():
        adapted = get_peft_model(model, LoraConfig(**options))
        adapted.save_pretrained(tmp_path / "initial")
        _train(adapted)
        adapted.save_pretrained(tmp_path / "trained")
    truth = answer(adapted, "llama")
    result = adaptool.convert(
        tmp_path / "trained", tmp_path / "out", to="lora", init_adapter=tmp_path / "initial"
    )
    assert result.relative_error is None
    with quietly():
        plain = PeftModel.from_pretrained(build("llama"), tmp_path / "out")
    assert torch.allclose(answer(plain, "llama"), truth, atol=2e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == 8


def _train(adapted: PeftModel) -> None:
    """Every factor moves, as in training."""
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.add_(torch.randn_like(value), alpha=0.02)


def test_every_value_keeps_its_bits(tmp_path: Path) -> None:
    """A' = [A; A0], B' = [B, -B0]: nothing is rounded where both scalings agree."""
    torch.manual_seed(0)
    with quietly():
        options = {"r": 4, "lora_alpha": 5, "target_modules": ["q_proj"]}
        adapted = get_peft_model(build("llama"), LoraConfig(**options, init_lora_weights="pissa"))
        adapted.save_pretrained(tmp_path / "initial")
        _train(adapted)
        adapted.save_pretrained(tmp_path / "trained")
    adaptool.convert(
        tmp_path / "trained", tmp_path / "out", to="lora", init_adapter=tmp_path / "initial"
    )
    begun, trained, made = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("initial", "trained", "out")
    )
    for name, value in made.items():
        assert value.dtype == trained[name].dtype
        if "lora_A" in name:
            assert torch.equal(value, torch.cat([trained[name], begun[name]]))
        else:
            assert torch.equal(value, torch.cat([trained[name], -begun[name]], dim=1))


def test_without_the_initial_adapter_it_is_refused(tmp_path: Path) -> None:
    """Exit 4 and nothing written: the trained factors alone are not the update."""
    with quietly():
        options = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
        get_peft_model(build("llama"), options).save_pretrained(tmp_path / "trained")
    with pytest.raises(MismatchError) as raised:
        adaptool.convert(tmp_path / "trained", tmp_path / "out", to="lora")
    assert str(raised.value.code) == "init-changed-base"
    assert not (tmp_path / "out").exists()


def test_an_initial_adapter_of_a_plain_lora_is_refused(tmp_path: Path) -> None:
    """There is nothing to subtract."""
    with quietly():
        options = LoraConfig(r=4, target_modules=["q_proj"])
        get_peft_model(build("llama"), options).save_pretrained(tmp_path / "plain")
    with pytest.raises(MismatchError):
        adaptool.convert(
            tmp_path / "plain", tmp_path / "out", to="lora", init_adapter=tmp_path / "plain"
        )
