"""AdaLoRA: whole, pruned to other ranks and to none, on convolutions and on Conv1D."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tuner_cases import Example


def _prune(model: PeftModel) -> None:
    """Drop some triplets of some modules, and all of one, as training's budget does."""
    kept = {}
    for place, name in enumerate(
        name.removesuffix(".lora_E.default").removeprefix("base_model.model.")
        for name, _ in model.named_parameters()
        if name.endswith(".lora_E.default")
    ):
        flags = [True, place % 3 != 1, False, place % 2 == 0, True]
        kept[f"{name}.lora_E"] = flags if place != 1 else [False] * 5
    model.peft_config["default"].rank_pattern = kept


def _add_divisors(folder: Path) -> None:
    """Older releases saved the divisor of each module beside its factors."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if name.endswith(".lora_E")]:
        tensors[name.replace("lora_E", "ranknum")] = torch.tensor([5.0])
    save_file(tensors, folder / "adapter_model.safetensors")


ALPHA = {"init_r": 5, "target_r": 3, "lora_alpha": 7, "total_step": 100}
EXAMPLES = (
    Example("llama", {**ALPHA, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    Example("llama", {**ALPHA, "target_modules": ["q_proj", "up_proj"]}, "pruned", adjust=_prune),
    Example("llama", {**ALPHA, "target_modules": ["q_proj"]}, "divisor", edit=_add_divisors),
    Example("gpt2", {**ALPHA, "target_modules": ["c_attn", "c_proj"]}),
    Example("phi3", {**ALPHA, "lora_alpha": -1, "target_modules": ["qkv_proj"]}, "negative alpha"),
    Example("convnet", {**ALPHA, "target_modules": ["conv2", "pointwise", "out"]}),
)
