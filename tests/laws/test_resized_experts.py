"""Experts that stand one by one keep one rank, which is what PEFT stacks them at."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import adaptool
from peft_judge import furthest, load, save_base, under, weights

RANK, HIDDEN, INNER = 4, 32, 48
LAYERS = "base_model.model.model.layers"


def _as_transformers_4_had_it(where: Path) -> Path:
    """LoRA of every expert of a small mixtral, of another rank in each but stored at one."""
    torch.manual_seed(1)
    tensors = {}
    for layer in range(2):
        for expert in range(4):
            for name, out, inner in (
                ("w1", INNER, HIDDEN),
                ("w2", HIDDEN, INNER),
                ("w3", INNER, HIDDEN),
            ):
                module = f"{LAYERS}.{layer}.block_sparse_moe.experts.{expert}.{name}"
                a, b = torch.randn(RANK, inner), torch.randn(out, RANK)
                b[:, 1 + expert % 3 :] = 0
                tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    where.mkdir()
    save_file(tensors, where / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["w1", "w2", "w3"]}
    (where / "adapter_config.json").write_text(json.dumps(config))
    return where


def test_peft_loads_resized_experts(tmp_path: Path) -> None:
    """At the energy of all, the weights are those of the adapter as it was."""
    base = save_base("mixtral", tmp_path / "base")
    adapter = _as_transformers_4_had_it(tmp_path / "adapter")
    made = adaptool.resize(adapter, tmp_path / "out", energy=0.9999999)
    assert {module.rank_after for module in made.modules} == {3}
    wanted = under("mixtral", base, adapter)
    found = under("mixtral", base, tmp_path / "out")
    assert furthest(found, wanted, weights(load("mixtral", base))) < 1e-4
