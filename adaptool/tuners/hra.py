"""HRA (Yuan et al. 2024, arXiv:2405.17484): a chain of Householder reflections.

W' = W (I - 2 u_1 u_1^T) ... (I - 2 u_r u_r^T),   u_k the k-th column of `hra_u`, of length 1

`hra_u` is (in, r), with in * kernel rows for a convolution. With `apply_GS` the columns are made
orthogonal first, from left to right. Source: PEFT 0.21.2, `hra/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import INPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.placing import changed

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="HRA",
    peft_type="HRA",
    keys={"hra_u": "u"},
    required=frozenset({"u"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({INPUTS}),
    workspace=4,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Inputs and the number of reflections; the outputs are counted in the base alone."""
    shape = shapes["u"]
    if len(shape) != 2:
        message = f"hra_u {list(shape)} must be (inputs, reflections)"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    conventions = {"orthogonal": fields.flag(config, "apply_GS")}
    return Terms(Form.LINEAR, 0, shape[0], scaling=1.0, conventions=conventions)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the same steps in both precisions
) -> Update:
    """What the layer reads is reflected, one direction after the other."""
    directions = _directions(factors["u"], orthogonal=bool(terms.conventions["orthogonal"]))

    def reflected(weights: torch.Tensor) -> torch.Tensor:
        value = weights.clone()
        for direction in directions:
            value.addr_(value @ direction, direction, alpha=-2.0)
        return value

    return changed(reflected, DECLARATION, view, weight)


def _directions(columns: torch.Tensor, *, orthogonal: bool) -> list[torch.Tensor]:
    """Columns of length 1, each orthogonal to those before it where asked."""
    found: list[torch.Tensor] = []
    for column in columns.T:
        direction = column
        for before in found if orthogonal else ():
            direction = direction - before.dot(direction) * before
        found.append(direction / direction.norm())
    return found
