"""Initialisations that changed the base: recomputed, undone by the initial adapter, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from adaptool import MismatchError, merge, verify
from adaptool.findings import Code

TOKENS = torch.arange(20)[None]
TARGETS = ["q_proj", "v_proj", "down_proj", "up_proj"]
RECOMPUTED = ["pissa", "olora"]
NEED_THE_START = ["pissa_niter_4"]


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            tie_word_embeddings=False,
        )
    )


def _trained(folder: Path, init: str, **config: Any) -> torch.Tensor:
    """Save base, initial and trained adapter below `folder`; the adapted model's logits."""
    model = _model()
    model.save_pretrained(folder / "base")
    peft = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=7, init_lora_weights=init, target_modules=TARGETS, **config),
    )
    peft.peft_config["default"].init_lora_weights = True
    peft.save_pretrained(folder / "start")
    peft.peft_config["default"].init_lora_weights = init
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    peft.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return peft(TOKENS).logits


def _error(folder: Path, expected: torch.Tensor) -> float:
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(folder)(TOKENS).logits
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", RECOMPUTED)
def test_recomputed_initialisation_gives_the_adapted_forward(
    tmp_path: Path, init: str, use_rslora: bool
) -> None:
    """What training took out of the base follows from the base alone."""
    expected = _trained(tmp_path, init, use_rslora=use_rslora)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert _error(tmp_path / "out", expected) < 1e-5
    assert verify(tmp_path / "base", tmp_path / "adapter", tmp_path / "out").ok


@pytest.mark.parametrize("init", [*RECOMPUTED, *NEED_THE_START])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_initial_adapter_gives_the_adapted_forward(
    tmp_path: Path, init: str, config: dict[str, Any]
) -> None:
    """W - s B0 A0 + s B A, whatever the initialisation was."""
    expected = _trained(tmp_path, init, **config)
    start = tmp_path / "start"
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", init_adapter=start)
    assert _error(tmp_path / "out", expected) < 1e-5


@pytest.mark.parametrize("init", NEED_THE_START)
def test_random_initialisation_is_refused_without_its_start(tmp_path: Path, init: str) -> None:
    """A merge that would be wrong does not happen, and says what is missing."""
    _trained(tmp_path, init)
    with pytest.raises(MismatchError) as caught:
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert caught.value.code is Code.INIT_CHANGED_BASE
    assert "--init-adapter" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_initial_adapter_of_other_modules_is_refused(tmp_path: Path) -> None:
    """Subtracting what was never added would be wrong as well."""
    _trained(tmp_path, "pissa")
    other = get_peft_model(_model(), LoraConfig(r=4, target_modules=["q_proj"]))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError) as caught:
        merge(
            tmp_path / "base",
            tmp_path / "adapter",
            tmp_path / "out",
            init_adapter=tmp_path / "other",
        )
    assert caught.value.field == "--init-adapter"
