"""A tuner's quantities under a view: vectors along an axis, and tensors that are needed whole.

A layer's weight is (outputs, inputs). A base may store it transposed, or cut, or fused with
others; a view says how, and tuners say "outputs" and "inputs" and leave the rest to this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import Span, View

if TYPE_CHECKING:
    import torch

    Change = Callable[[torch.Tensor], torch.Tensor]


def part_of(view: View, axis: str) -> Span | None:
    """The part of the delta's `axis` (INPUTS or OUTPUTS) that the view takes; None for all."""
    over_rows = (axis == OUTPUTS) != view.transposed
    return view.take_rows if over_rows else view.take_columns


class Along:
    """Numbers along one axis of the weight, to be broadcast over a tile."""

    def __init__(self, values: torch.Tensor, view: View, axis: str) -> None:
        """`values` one number for each of the delta's outputs, or inputs."""
        part = part_of(view, axis)
        taken = values if part is None else values[list(part.indices())]
        self._by_row = (axis == OUTPUTS) != view.transposed
        self._values = taken[:, None] if self._by_row else taken[None, :]

    def over(self, rows: slice) -> torch.Tensor:
        """(rows, 1) or (1, columns) for the tile `rows`."""
        return self._values[rows] if self._by_row else self._values


def replace(out: torch.Tensor, base: torch.Tensor, value: torch.Tensor, weight: float) -> None:
    """out += weight * (value - base); exactly `value` where the weight is 1 and out is base."""
    if weight == 1.0:
        out.sub_(base).add_(value)
    else:
        out.add_(value.sub_(base), alpha=weight)


class TileUpdate:
    """`weight * (f(W) - W)` where f works on any rows of the tile alone."""

    def __init__(self, change: Change, weight: float, gain: Along | None = None) -> None:
        """`change` gives f(W) of (rows, columns) as a tensor of its own, which `gain` scales."""
        self._change, self._weight, self._gain = change, weight, gain

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (f(W) - W)."""
        value = self._change(base)
        if self._gain is not None:
            value = value * self._gain.over(rows)
        replace(out, base, value, self._weight)


class WholeUpdate:
    """`weight * (f(W) - W)` where f needs all of W: it is kept until it has been seen."""

    def __init__(
        self, change: Change, view: View, weight: float, gain: Along | None = None
    ) -> None:
        """`change` gives f(W) of all of W, rows and columns as the view has them."""
        self._change, self._weight, self._gain = change, weight, gain
        self._shape = (view.rows.count, view.columns.count)
        self._seen: torch.Tensor | None = None

    def observe(self, base: torch.Tensor, rows: slice) -> None:
        """Keep W[rows]."""
        if self._seen is None:
            self._seen = base.new_empty(self._shape)
        self._seen[rows] = base

    def settle(self) -> None:
        """f(W) is known, and W is let go of."""
        if self._seen is not None:
            self._value = self._change(self._seen)
        self._seen = None

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (f(W) - W)[rows]."""
        value = self._value[rows]
        value = value.clone() if self._gain is None else value * self._gain.over(rows)
        replace(out, base, value, self._weight)


def changed(
    change: Change,
    declared: Declaration,
    view: View,
    weight: float,
    gain: Along | None = None,
) -> Update:
    """The update of `change`, which gives f(W) of (outputs, inputs), under any view.

    Where there is a `gain`, f(W) is scaled by it along its axis. It is computed by rows where the
    tuner mixes what lies in a row of the base's tensor, and of the whole tensor where it mixes
    rows. `change` must not write into its argument.
    MismatchError where the view holds only a part of what is mixed.
    """
    for axis in declared.mixes:
        if part_of(view, axis) is not None or view.expert is not None:
            message = f"{declared.title} mixes all {axis} of a weight that the base has in pieces"
            raise MismatchError(message, code=Code.UNSUPPORTED)
    over_rows = INPUTS if view.transposed else OUTPUTS

    def turned(weights: torch.Tensor) -> torch.Tensor:
        return change(weights.T).T if view.transposed else change(weights)

    if over_rows in declared.mixes:
        return WholeUpdate(turned, view, weight, gain)
    return TileUpdate(turned, weight, gain)
