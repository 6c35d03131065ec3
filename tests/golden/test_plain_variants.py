"""Variants of LoRA that look plain on disk, trained for real, inspected, validated and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.optimizers import create_loraplus_optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from adaptool import inspect, merge, validate
from adaptool.model.results import AdapterSummary

TARGETS = ["q_proj", "v_proj", "down_proj"]
TOKENS = torch.arange(48).reshape(2, 24)
Optimizer = Callable[[PeftModel], torch.optim.Optimizer]


def _plain_optimizer(model: PeftModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def _lora_plus(model: PeftModel) -> torch.optim.Optimizer:
    return create_loraplus_optimizer(
        model, optimizer_cls=torch.optim.AdamW, lr=5e-3, loraplus_lr_ratio=16
    )


def _eva(model: PeftModel) -> None:
    """EVA moves ranks between modules by the variance of their inputs, and writes rank_pattern."""
    batches = [{"input_ids": (TOKENS + shift) % 96} for shift in range(4)]
    initialize_lora_eva_weights(model, dataloader=batches, show_progress_bar=False)


GORA = {"layers.0.self_attn.q_proj": 2, "layers.1.self_attn.q_proj": 7, "down_proj": 3}
VARIANTS: dict[str, tuple[dict[str, Any], Optimizer, Callable[[PeftModel], None] | None]] = {
    "lora-plus": ({}, _lora_plus, None),
    "rslora": ({"use_rslora": True}, _plain_optimizer, None),
    "per-layer-ranks": (
        {"rank_pattern": {r"layers\.[0]\..*": 2}, "alpha_pattern": {r"layers\.1\..*v_proj": 9}},
        _plain_optimizer,
        None,
    ),
    "gora": ({"rank_pattern": GORA, "use_rslora": True}, _plain_optimizer, None),
    "eva": (
        {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=2.0)},
        _plain_optimizer,
        _eva,
    ),
}


def _train(folder: Path, variant: str) -> torch.Tensor:
    """Save base and trained adapter; the adapted model's logits."""
    config, optimizer, initialise = VARIANTS[variant]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder / "base")
    adapted = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **config)
    peft = get_peft_model(model, adapted, low_cpu_mem_usage=initialise is not None)
    if initialise is not None:
        initialise(peft)
    steps = optimizer(peft)
    for _ in range(3):
        steps.zero_grad()
        peft(TOKENS, labels=TOKENS).loss.backward()
        steps.step()
    peft.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return peft(TOKENS).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_inspected_validated_and_merged(tmp_path: Path, variant: str) -> None:
    """Ranks as the tensors have them, nothing to find, and the adapted model's forward."""
    expected = _train(tmp_path, variant)
    summary = inspect(tmp_path / "adapter", base=tmp_path / "base")
    assert isinstance(summary, AdapterSummary)
    assert summary.tuners == {"lora": 6}
    found = validate(tmp_path / "adapter", base=tmp_path / "base")
    assert [finding.message for finding in found.findings] == []
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(tmp_path / "out")(TOKENS).logits
    assert float((logits - expected).norm() / expected.norm()) < 1e-5


def test_ranks_of_a_pattern_are_shown(tmp_path: Path) -> None:
    """The histogram counts modules, and scalings follow each module's own rank."""
    _train(tmp_path, "gora")
    summary = inspect(tmp_path / "adapter")
    assert isinstance(summary, AdapterSummary)
    assert summary.ranks == {"min": 2, "max": 7, "histogram": {"2": 1, "3": 2, "4": 2, "7": 1}}
    scalings = {row.module: row.scaling for row in summary.modules}
    assert scalings["model.layers.1.self_attn.q_proj"] == pytest.approx(6 / 7**0.5)
