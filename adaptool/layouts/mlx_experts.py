"""Experts as MLX-LM's switch layers name them: all experts' projection is one module.

Source: mlx-lm 0.32.2, the `sanitize` of mlx_lm/models/{mixtral,qwen2_moe,qwen3_moe,olmoe}.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# Mixtral's experts have other names in transformers: gate, down and up are w1, w2 and w3.
_MIXTRAL: Mapping[str, str] = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_BY_NUMBER = {there: here for here, there in _MIXTRAL.items()}
BLOCKS: Mapping[str, str] = {"mixtral": "block_sparse_moe", "phimoe": "block_sparse_moe"}
"""What MLX-LM calls the experts' parent by `model_type`, where transformers says `mlp`."""
_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,6})\.([^.]+)")
_SWITCH = ".switch_mlp"
_STACK = ".experts"


def expert_modules(module: str, experts: int) -> Iterator[str]:
    """The module paths of the experts that a switch layer's projection stands for."""
    parent, _, name = module.rpartition(".")
    block = parent.removesuffix(_SWITCH).removesuffix(_STACK)
    if block.endswith("block_sparse_moe"):
        name = _MIXTRAL.get(name, name)
    for place in range(experts):
        yield f"{block}.experts.{place}.{name}"


def switch_module(module: str, block_name: str = "") -> tuple[str, int] | None:
    """`mlp.experts.3.up_proj` -> (`mlp.switch_mlp.up_proj`, 3); None for what is no expert's.

    `block_name` is what MLX-LM calls the experts' parent, where that is another name.
    """
    found = _EXPERT.fullmatch(module)
    if found is None:
        return None
    block, place, name = found.groups()
    if block_name:
        block = f"{block.rpartition('.')[0]}.{block_name}"
    return f"{block}{_SWITCH}.{_BY_NUMBER.get(name, name)}", int(place)
