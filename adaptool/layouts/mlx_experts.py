"""Experts as MLX-LM's switch layers name them: all experts' projection is one module.

Source: mlx-lm 0.32.2, the `sanitize` of mlx_lm/models/{mixtral,qwen2_moe,qwen3_moe,olmoe}.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Mixtral's experts have other names in transformers: gate, down and up are w1, w2 and w3.
_MIXTRAL: Mapping[str, str] = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
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
