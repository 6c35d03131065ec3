"""BEFT (Huang et al. 2025, arXiv:2509.15974): a trained vector is added to the layer's bias.

b' = b + d

A layer without a bias has nothing that could hold it, in PEFT as here. Source: PEFT 0.21.2,
`beft/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration, Effect
from adaptool.model.view import View
from adaptool.tuners.elements import RowsUpdate

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="BEFT",
    peft_type="BEFT",
    keys={"beft_bias": "difference"},
    required=frozenset({"difference"}),
    additive=True,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """One number for each output; InputError where beft_bias is no vector."""
    del config
    shape = shapes["difference"]
    if prod(shape) != shape[-1]:
        message = f"beft_bias {list(shape)} is no vector"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.VECTOR, shape[-1], 1, 1.0)


def effects(terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Effect, ...]:
    """The bias alone."""
    return (Effect("bias", frozenset(shapes), terms),)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - one sum in both precisions
) -> RowsUpdate:
    """The difference under the view's rows."""
    difference = factors["difference"].reshape(terms.out, 1)
    return RowsUpdate(lambda first, last: difference[first:last], view, weight)
