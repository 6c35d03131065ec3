"""VeLoRA (Miles et al. 2024, arXiv:2405.17991): LoRA trained with compressed activations.

W' = W + s B A

The file holds the vector that activations were projected on beside LoRA's factors; it served the
gradients of A alone, and no weight depends on it. Source: PEFT 0.21.2, `VeloraLinearVariant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.model.adapter import Terms
from adaptool.model.tuner import Declaration
from adaptool.tuners import low_rank_factors as plain
from adaptool.tuners.low_rank_factors import effects, low_rank_update, product_factors

__all__ = ["DECLARATION", "effects", "prepare", "product_factors", "terms"]

DECLARATION = Declaration(
    title="VeLoRA",
    peft_type="LORA",
    keys={**plain.KEYS, "lora_velora_embed": "embed"},
    required=frozenset({"A", "B"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    frozen=frozenset({"embed"}),
    switch="velora_config",
    proportional=plain.PROPORTIONAL,
)

prepare = low_rank_update


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """LoRA's terms."""
    factors = {role: shape for role, shape in shapes.items() if role != "embed"}
    return plain.terms(config, module, factors)
