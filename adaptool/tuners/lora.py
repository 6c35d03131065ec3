"""LoRA (Hu et al. 2021, arXiv:2106.09685).

W' = W + s B A,   s = alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023)

The factors' shapes for each kind of layer stand in `low_rank_factors.py`.
"""

from __future__ import annotations

from adaptool.model.tuner import Declaration
from adaptool.tuners.low_rank_factors import (
    KEYS,
    PROPORTIONAL,
    effects,
    low_rank_update,
    product_factors,
    terms,
)

__all__ = ["DECLARATION", "effects", "prepare", "product_factors", "terms"]

DECLARATION = Declaration(
    title="LoRA",
    peft_type="LORA",
    keys=KEYS,
    required=frozenset(),
    additive=True,
    low_rank=True,
    invertible="rounding",
    proportional=PROPORTIONAL,
)

prepare = low_rank_update
