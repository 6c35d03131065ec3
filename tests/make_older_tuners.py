"""Adapters that today's PEFT no longer reads, and what the PEFT that trained them merged.

    python tests/make_older_tuners.py tests/golden/tuners/older

Run it with PEFT 0.15.2, and with 0.17.1, and with a transformers that they know: each writes the
cases that it is for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import nn


class Net(nn.Module):
    """A linear layer each way and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        self.conv = nn.Conv2d(4, 6, 3)


ALL = ["up", "down", "conv"]
OFT = {"r": 0, "oft_block_size": 4, "target_modules": ALL}
BONE = {"r": 4, "target_modules": ["up", "down"]}
CASES: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "0.15.2": {
        "oft": lambda: peft.OFTConfig(**OFT),
        "oft_shared": lambda: peft.OFTConfig(**OFT, block_share=True),
        "oft_constrained": lambda: peft.OFTConfig(**OFT, coft=True, eps=0.05),
        "bone": lambda: peft.BoneConfig(**BONE),
        "bone_bat": lambda: peft.BoneConfig(**BONE, init_weights="bat"),
    },
    "0.17.1": {
        "oft_series": lambda: peft.OFTConfig(
            oft_block_size=4, target_modules=["up", "down"], use_cayley_neumann=True
        ),
        "oft_series_short": lambda: peft.OFTConfig(
            oft_block_size=4,
            target_modules=["up", "down"],
            use_cayley_neumann=True,
            num_cayley_neumann_terms=3,
        ),
    },
}


def make(config: object, folder: Path) -> None:
    """Write base, adapter and what PEFT merged of them into `folder`."""
    torch.manual_seed(3)
    base = Net()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(base.state_dict(), folder.parent / "base.safetensors")
    tuned = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                gain = 1.0 if "oft_s" in name else 0.0
                parameter.copy_(gain + 0.3 * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    (folder / "README.md").unlink()
    merged = tuned.merge_and_unload().state_dict()
    save_file(
        {name: value.contiguous() for name, value in merged.items()}, folder / "merged.safetensors"
    )


if __name__ == "__main__":
    for name, config in CASES[peft.__version__].items():
        make(config(), Path(sys.argv[1]) / name)
