"""OFT: series and exact rotations, shared and constrained blocks, embeddings, older layouts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tuner_cases import Example

LINEARS = ["q_proj", "v_proj", "down_proj"]
EXACT = {"oft_block_size": 8, "use_cayley_neumann": False}


def _to_0_15(folder: Path) -> None:
    """The layout of PEFT 0.14 and 0.15: whole matrices, and a scale for every output."""
    path = folder / "adapter_model.safetensors"
    older = {}
    for name, upper in load_file(path).items():
        size = int((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
        rows, columns = torch.triu_indices(size, size, 1)
        whole = upper.new_zeros(len(upper), size, size)
        # Only the skew-symmetric part counts: half of it comes from either side.
        whole[:, rows, columns] = 2 * upper
        module = name.removesuffix("oft_R.weight")
        older[f"{module}oft_r"] = whole
        outputs = 48 if "up_proj" in module else 16 if "k_proj" in module else 32
        older[f"{module}oft_s"] = torch.ones(outputs, 1).to(upper)
    save_file(older, path, {"format": "pt"})
    _edit_config(folder, "use_cayley_neumann", "num_cayley_neumann_terms", "peft_version")


def _edit_config(folder: Path, *removed: str) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in config.keys() - set(removed)}))


EXAMPLES = (
    Example("llama", {"oft_block_size": 8, "target_modules": LINEARS}),
    Example("bert", {**EXACT, "target_modules": ["query", "dense"]}, "exact"),
    Example("llama", {"r": 4, "oft_block_size": 0, "target_modules": LINEARS}, "blocks counted"),
    *(
        Example(
            "llama",
            {
                "oft_block_size": 4,
                "use_cayley_neumann": True,
                "num_cayley_neumann_terms": count,
                "target_modules": ["q_proj", "up_proj"],
            },
            f"{count} terms",
        )
        for count in (2, 3, 4, 6)
    ),
    Example("llama", {**EXACT, "block_share": True, "target_modules": LINEARS}, "shared block"),
    Example(
        "bert",
        {"oft_block_size": 8, "coft": True, "eps": 0.4, "target_modules": ["query"]},
        "constrained",
    ),
    Example("llama", {**EXACT, "target_modules": ["embed_tokens", "o_proj"]}, "embedding"),
    Example("convnet", {**EXACT, "block_share": True, "target_modules": ["embed"]}, "embedding"),
    Example("convnet", {"oft_block_size": 3, "target_modules": ["pointwise", "out"]}),
    Example(
        "llama",
        {**EXACT, "target_modules": ["k_proj", "up_proj"]},
        "layout of 0.15",
        edit=_to_0_15,
        older=True,
    ),
    Example(
        "llama",
        {**EXACT, "block_share": True, "target_modules": ["k_proj", "up_proj"]},
        "layout of 0.15, shared block",
        edit=_to_0_15,
        older=True,
    ),
)
