"""LN tuning (Zhao et al. 2023, arXiv:2312.11420): layers trained whole, normalisations as a rule.

W' = W_trained,  b' = b_trained

Source: PEFT 0.21.2, `ln_tuning/layer.py`, which keeps a copy of each layer it is pointed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.model.adapter import Replaced
from adaptool.model.tuner import Declaration
from adaptool.store.tensors import TensorRef

DECLARATION = Declaration(
    title="LN tuning",
    peft_type="LN_TUNING",
    keys={"ln_tuning_layers.weight": "weight", "ln_tuning_layers.bias": "bias"},
    required=frozenset(),
    additive=False,
    low_rank=False,
    invertible="no",
)


def carried(
    config: Mapping[str, Any], module: str, roles: Mapping[str, TensorRef]
) -> tuple[Replaced, ...]:
    """The layer's parameters, in place of the base's."""
    del config
    return tuple(
        Replaced(f"{module}.{leaf}", value, tuner="ln_tuning") for leaf, value in roles.items()
    )
