"""GLoRA as LyCORIS writes it, which PEFT has not: `tests/layouts/lycoris` has its forward."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tuner_cases import Example

WEIGHTS = "adapter_model.safetensors"
OPTIONS = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


def _with_products(folder: Path) -> None:
    """The factors as b1 and b2, and a1 and a2 beside them; alpha is the rank."""
    torch.manual_seed(11)
    written = {}
    for key, value in load_file(folder / WEIGHTS).items():
        path, _, ending = key.removeprefix("base_model.model.").partition(".lora_")
        flat = f"lora_te_{path.replace('.', '_')}"
        written[f"{flat}.{'b2' if ending[0] == 'A' else 'b1'}.weight"] = value
        if ending[0] == "A":
            written[f"{flat}.a1.weight"] = 0.3 * torch.randn_like(value.T.contiguous())
            written[f"{flat}.a2.weight"] = 0.3 * torch.randn_like(value)
    save_file(written, folder / WEIGHTS)


EXAMPLES = (
    Example("llama", OPTIONS, edit=_with_products, peft_type="LORA", truth="elsewhere"),
    Example("qwen2", OPTIONS, edit=_with_products, peft_type="LORA", truth="elsewhere"),
)
