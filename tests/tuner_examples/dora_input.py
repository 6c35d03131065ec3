"""DoRA with a magnitude for each input, in kohya's layout: PEFT has no such tuner to compare with.

`tests/layouts/kohya` compares it with LyCORIS' forward.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tuner_cases import Example

WEIGHTS = "adapter_model.safetensors"
OPTIONS = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


def _over_outputs(folder: Path) -> None:
    """The same factors under kohya's names, with a magnitude for each input; alpha is the rank."""
    written = {}
    for key, value in load_file(folder / WEIGHTS).items():
        path, _, ending = key.removeprefix("base_model.model.").partition(".lora_")
        flat = f"lora_te_{path.replace('.', '_')}"
        written[f"{flat}.lora_{'down' if ending[0] == 'A' else 'up'}.weight"] = value
        if ending[0] == "A":
            scale = torch.linspace(0.5, 1.5, value.shape[1], dtype=value.dtype)
            written[f"{flat}.dora_scale"] = scale[None, :]
    save_file(written, folder / WEIGHTS)


EXAMPLES = (
    Example("llama", OPTIONS, edit=_over_outputs, peft_type="LORA", truth="elsewhere"),
    Example("qwen2", OPTIONS, edit=_over_outputs, peft_type="LORA", truth="elsewhere"),
)
