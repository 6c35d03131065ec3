"""MonteCLoRA (Sengupta et al. 2024, arXiv:2411.04358): LoRA trained with sampled noise on A.

W' = W + s B A

The file holds the distribution that the noise was drawn from beside LoRA's factors. The trained
model computes without noise, and so does the merged one. Source: PEFT 0.21.2,
`MontecloraLinearVariant`.
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
    title="MonteCLoRA",
    peft_type="LORA",
    keys={**plain.KEYS, "lora_monteclora_sampler.{}": "sampler.{}"},
    required=frozenset({"A", "B"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    frozen=frozenset({"sampler.gaussian_var_prior", "sampler.expert_weights"}),
    switch="monteclora_config",
    proportional=plain.PROPORTIONAL,
)

prepare = low_rank_update


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """LoRA's terms."""
    factors = {role: shape for role, shape in shapes.items() if not role.startswith("sampler.")}
    return plain.terms(config, module, factors)
