"""DoRA (Liu et al. 2024, arXiv:2402.09353).

V = W + s B A,   W' = m V / |V|

m and |V| belong to the output axis: one number per output row of a linear weight, per output
channel of a convolution, per column of an embedding (vocab, dim). Where the base stores the weight
transposed (Conv1D, embeddings) that is a norm over columns of the file's matrix, and all of W must
be seen before the first tile. Keys: LoRA's, and `lora_magnitude_vector`; several DoRA adapters
take their norms from the unmerged base each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Terms
from adaptool.model.tuner import INPUTS, Declaration
from adaptool.model.view import View
from adaptool.tuners import low_rank_factors as plain
from adaptool.tuners.low_rank_factors import effects, product_factors

if TYPE_CHECKING:
    import torch

__all__ = ["DECLARATION", "effects", "prepare", "product_factors", "terms"]

DECLARATION = Declaration(
    title="DoRA",
    peft_type="LORA",
    keys={
        **plain.KEYS,
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
    },
    required=frozenset({"magnitude"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({INPUTS}),
    proportional=plain.PROPORTIONAL,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """LoRA's terms; InputError where the magnitude does not hold one number per output."""
    factors = {role: shape for role, shape in shapes.items() if role != "magnitude"}
    found = plain.terms(config, module, factors)
    size = 1
    for axis in shapes["magnitude"]:
        size *= axis
    if size != found.out:
        shape = list(shapes["magnitude"])
        message = f"lora_magnitude_vector {shape} has {size} numbers for {found.out} outputs"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return found


class MagnitudeUpdate:
    """`weight * (m V / |V| - W)` with one m and one norm per row of the tile."""

    def __init__(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        magnitude: torch.Tensor,
        scaling: float,
        weight: float,
    ) -> None:
        """left (rows, r), right (r, columns), magnitude (rows)."""
        self._left, self._right = left, right
        self._magnitude, self._scaling, self._weight = magnitude, scaling, weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (m V / |V| - W)."""
        direction = base + (self._left[rows] @ self._right).mul_(self._scaling)
        gain = self._magnitude[rows] / direction.norm(dim=1)
        _replace(out, base, direction.mul_(gain[:, None]), self._weight)


class ColumnMagnitudeUpdate:
    """`weight * (m V / |V| - W)` with one m and one norm per column, seen over all rows."""

    def __init__(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        magnitude: torch.Tensor,
        scaling: float,
        weight: float,
    ) -> None:
        """left (rows, r), right (r, columns), magnitude (columns)."""
        self._left, self._right = left, right
        self._magnitude, self._scaling, self._weight = magnitude, scaling, weight
        self._squares = magnitude.new_zeros(magnitude.shape)

    def _direction(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return base + (self._left[rows] @ self._right).mul_(self._scaling)

    def observe(self, base: torch.Tensor, rows: slice) -> None:
        """Add the squares of V[rows] to the column sums."""
        direction = self._direction(base, rows)
        self._squares += (direction * direction).sum(dim=0)

    def settle(self) -> None:
        """The gain m / |V| of each column is known."""
        self._gain = self._magnitude / self._squares.sqrt()

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (m V / |V| - W)."""
        direction = self._direction(base, rows)
        _replace(out, base, direction.mul_(self._gain[None, :]), self._weight)


def _replace(out: torch.Tensor, base: torch.Tensor, value: torch.Tensor, weight: float) -> None:
    """out += weight * (value - base); exactly `value` where the weight is 1 and out is base."""
    if weight == 1.0:
        out.sub_(base).add_(value)
    else:
        out.add_(value.sub_(base), alpha=weight)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - DoRA's order of operations is the same in both precisions
) -> MagnitudeUpdate | ColumnMagnitudeUpdate:
    """The update that renormalises; InputError where the view cuts a norm's axis."""
    left, right = plain.oriented(factors, terms, view)
    magnitude = factors["magnitude"].reshape(-1)
    along, across = view.take_rows, view.take_columns
    if view.transposed:
        along, across = across, along
    if across is not None or view.expert is not None:
        message = "DoRA's norms would run over several tensors of the base"
        raise InputError(message, code=Code.UNSUPPORTED)
    if along is not None:
        magnitude = magnitude[list(along.indices())]
    kind = ColumnMagnitudeUpdate if view.transposed else MagnitudeUpdate
    return kind(left, right, magnitude.contiguous(), terms.scaling, weight)
