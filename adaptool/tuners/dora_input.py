"""DoRA whose norm runs over the outputs: one magnitude for each input.

V = W + s B A,   W' = m V / (|V| + 2^-23)

m and |V| belong to the input axis: one number for each column of a linear weight (out, in), for
each input channel of a convolution, over all outputs and the kernel. LyCORIS wrote it before
`wd_on_out` became its default, OneTrainer still does; PEFT has no tuner for it. Source: LyCORIS
4.1.3, functional/general.py, `weight_decompose` with `wd_on_out=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration
from adaptool.model.view import View
from adaptool.tuners import low_rank_factors as plain
from adaptool.tuners.placing import part_of, replace

if TYPE_CHECKING:
    import torch

# What the trainers add to a norm, so that a dead input is no division by zero: float32's epsilon.
EPSILON = 2.0**-23

DECLARATION = Declaration(
    title="DoRA over outputs",
    peft_type="",
    keys={},
    required=frozenset({"A", "B", "magnitude"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({OUTPUTS}),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """LoRA's terms; InputError where the magnitude does not hold one number per input."""
    factors = {role: shape for role, shape in shapes.items() if role != "magnitude"}
    found = plain.terms(config, module, factors)
    size, inputs = prod(shapes["magnitude"]), shapes["A"][1]
    if size != inputs:
        shape = list(shapes["magnitude"])
        message = f"the magnitude {shape} has {size} numbers for {inputs} inputs"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return found


class InputMagnitudeUpdate:
    """`weight * (m V / |V| - W)`, one m and one norm for each group of columns, or each row.

    Where the base stores inputs as rows the norms of a tile are known from it alone.
    """

    def __init__(
        self,
        factors: tuple[torch.Tensor, torch.Tensor],
        magnitude: torch.Tensor,
        scaling: float,
        weight: float,
        *,
        by_row: bool,
    ) -> None:
        """Factors left (rows, r), right (r, columns); magnitude (inputs)."""
        self._left, self._right = factors
        self._magnitude, self._scaling, self._weight = magnitude, scaling, weight
        self._by_row = by_row
        self._squares = magnitude.new_zeros(magnitude.shape)

    def _direction(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return base + (self._left[rows] @ self._right).mul_(self._scaling)

    def observe(self, base: torch.Tensor, rows: slice) -> None:
        """Add the squares of V[rows] to the sums of each input."""
        if not self._by_row:
            squares = self._direction(base, rows).square_().sum(dim=0)
            self._squares += squares.reshape(len(self._squares), -1).sum(dim=1)

    def settle(self) -> None:
        """The gain m / |V| of each column is known."""
        gain = self._magnitude / (self._squares.sqrt() + EPSILON)
        width = self._right.shape[1] // len(gain)
        self._gain = gain.repeat_interleave(width) if width else gain

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (m V / |V| - W)."""
        direction = self._direction(base, rows)
        if self._by_row:
            gain = self._magnitude[rows] / (direction.norm(dim=1) + EPSILON)
            replace(out, base, direction.mul_(gain[:, None]), self._weight)
        else:
            replace(out, base, direction.mul_(self._gain[None, :]), self._weight)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same in both precisions
) -> InputMagnitudeUpdate:
    """The update that renormalises; MismatchError where the base has the outputs in pieces."""
    kernel_cut = terms.kernel and part_of(view, INPUTS) is not None
    if part_of(view, OUTPUTS) is not None or view.expert is not None or kernel_cut:
        message = "DoRA's norms over outputs would run over several tensors of the base"
        raise MismatchError(message, code=Code.UNSUPPORTED)
    magnitude = factors["magnitude"].reshape(-1)
    along = part_of(view, INPUTS)
    if along is not None:
        magnitude = magnitude[list(along.indices())]
    pair = plain.oriented(factors, terms, view)
    return InputMagnitudeUpdate(
        pair, magnitude.contiguous(), terms.scaling, weight, by_row=view.transposed
    )
