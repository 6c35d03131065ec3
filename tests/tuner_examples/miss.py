"""MiSS: blocks that divide the inputs and such that do not, repeated ones, files named Bone."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tuner_cases import Example

LINEARS = ["q_proj", "k_proj", "down_proj"]


def to_bone(folder: Path) -> None:
    """The names that PEFT gave it up to 0.18."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    renamed = {name.replace("miss_block", "bone_block"): value for name, value in tensors.items()}
    save_file(renamed, path, {"format": "pt"})
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), "peft_type": "BONE"}
    for added in ("mini_r", "miss_dropout", "peft_version"):
        config.pop(added)
    path.write_text(json.dumps(config))


EXAMPLES = (
    Example("llama", {"r": 4, "target_modules": LINEARS}),
    Example("llama", {"r": 5, "target_modules": LINEARS}, "remainder"),
    Example("bert", {"r": 8, "target_modules": ["query", "dense"]}),
    Example(
        "llama",
        {"r": 4, "mini_r": 8, "init_weights": "mini", "target_modules": LINEARS},
        "mini",
    ),
    Example(
        "opt",
        {"r": 3, "mini_r": 16, "init_weights": "mini", "target_modules": ["fc1", "q_proj"]},
        "mini remainder",
    ),
    Example("llama", {"r": 4, "target_modules": LINEARS}, "bone", edit=to_bone, older=True),
)
