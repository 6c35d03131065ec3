"""Makes adaptool/names/diffusion_models.json from diffusers' classes, built on the meta device.

    python tests/models_from_diffusers.py

A module counts where it has a parameter of two axes or more; numbers in its path become `#`.
`blocks` are the stacks of more than two blocks, `widths` the inputs of the query projections.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

TABLE = Path(__file__).resolve().parents[1] / "adaptool" / "names" / "diffusion_models.json"
# Classes whose defaults build nothing.
NEEDS: Mapping[str, Mapping[str, Any]] = {
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 16,
        "num_single_layers": 32,
        "attention_head_dim": 128,
        "num_attention_heads": 20,
        "caption_channels": [4096, 4096],
        "text_emb_dim": 2048,
        "num_routed_experts": 4,
        "num_activated_experts": 2,
        "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128),
    },
    "LatteTransformer3DModel": {
        "attention_head_dim": 72,
        "num_attention_heads": 16,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "sample_size": 64,
        "patch_size": 2,
        "norm_type": "ada_norm_single",
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "norm_elementwise_affine": False,
        "video_length": 16,
    },
    "EasyAnimateTransformer3DModel": {
        "num_attention_heads": 48,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "text_embed_dim": 3584,
    },
    "OmniGenTransformer2DModel": {
        "rope_scaling": {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48, "type": "su"}
    },
}
# Lists of modules that are no blocks: one projection of the caption for every block.
NO_BLOCKS = {"caption_projection"}
# Classes that have no row: two generic ones, and two that were not looked at.
LEFT_OUT = {
    "DiTTransformer2DModel",
    "DreamLiteTransformer2DModel",
    "Transformer2DModel",
    "WanAnimate2Transformer3DModel",
}
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
_QUERY = re.compile(r"\.(to_q|q_proj|to_query|wq|to_qkv)$")
_CLASS = re.compile(r"Transformer\dDModel$")


def names() -> list[str]:
    """The classes of denoisers that diffusers exports."""
    found = {name for name in dir(diffusers) if _CLASS.search(name)}
    return sorted(found - LEFT_OUT)


def described(name: str) -> dict[str, Any]:
    """One class with its own defaults."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = getattr(diffusers, name)(**NEEDS.get(name, {}))
    modules, widths = set(), set()
    for path, module in model.named_modules():
        if any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False)):
            modules.add(_NUMBER.sub("#", path))
        if _QUERY.search(path) and isinstance(module, torch.nn.Linear):
            widths.add(module.in_features)
    blocks = {
        path: len(child)
        for path, child in model.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) > 2 and path not in NO_BLOCKS
    }
    return {"blocks": blocks, "widths": sorted(widths), "modules": " ".join(sorted(modules))}


if __name__ == "__main__":
    TABLE.write_text(json.dumps({name: described(name) for name in names()}, indent=1) + "\n")
