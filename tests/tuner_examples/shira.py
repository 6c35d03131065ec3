"""SHiRA: sparse shifts of square and other weights, indices as Windows writes them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from tuner_cases import Example


def _as_on_windows(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    floats = {
        name: value.float() if "indices" in name else value for name, value in tensors.items()
    }
    save_file(floats, path, {"format": "pt"})


LINEARS = ["q_proj", "k_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {"r": 4, "target_modules": LINEARS}),
    Example("llama", {"r": 3, "target_modules": LINEARS}, "Windows", edit=_as_on_windows),
    Example("bert", {"r": 2, "target_modules": ["query", "dense"], "random_seed": 5}),
)
