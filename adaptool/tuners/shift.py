"""A plain difference of the parameter's own shape.

W' = W + s D

PEFT writes one for `lora_bias`: `lora_B.bias` (out) shifts the layer's bias by s = alpha / r.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="shift",
    peft_type="",
    keys={"lora_B.bias": "difference"},
    required=frozenset({"difference"}),
    additive=True,
    low_rank=False,
    invertible="rounding",
    proportional=("difference",),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """A vector of `out` numbers, unscaled; a layout replaces the scaling with the file's own."""
    del config, module
    return Terms(form=Form.VECTOR, out=shapes["difference"][0], inner=1, scaling=1.0)


class ShiftUpdate:
    """`weight * s * D`."""

    def __init__(self, difference: torch.Tensor, scaling: float) -> None:
        """difference (rows, columns)."""
        self._difference = difference * scaling

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += D[rows]."""
        out.add_(self._difference[rows])


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - one product, then one sum, in both precisions
) -> ShiftUpdate:
    """The difference under the view: a layer's whole weight may have one as well as its bias."""
    difference = factors["difference"].reshape(terms.out, terms.inner)
    if view.transposed:
        difference = difference.T
    if view.take_rows is not None:
        difference = difference[list(view.take_rows.indices())]
    if view.take_columns is not None:
        difference = difference[:, list(view.take_columns.indices())]
    return ShiftUpdate(difference, terms.scaling * weight)
