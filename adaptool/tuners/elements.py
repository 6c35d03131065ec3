"""Deltas that can be computed in parts, by element or by rows, under any view."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adaptool.model.adapter import Terms
from adaptool.model.tuner import INPUTS, OUTPUTS
from adaptool.model.view import View
from adaptool.tuners.placing import part_of

if TYPE_CHECKING:
    import torch

    Elements = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    Difference = Callable[[int, int], torch.Tensor]


class ElementUpdate:
    """`weight * D` for a D that is computed element by element."""

    def __init__(
        self, elements: Elements, terms: Terms, view: View, weight: float, like: torch.Tensor
    ) -> None:
        """`elements` gives D at outputs and inputs that broadcast, in the dtype of `like`."""
        self._elements, self._weight = elements, weight
        self._transposed = view.transposed
        outputs = _indices(view, OUTPUTS, terms.out, like)
        inputs = _indices(view, INPUTS, terms.inner, like)
        self._rows, self._columns = (inputs, outputs) if view.transposed else (outputs, inputs)

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += weight * D[rows]."""
        down, across = self._rows[rows, None], self._columns[None, :]
        outputs, inputs = (across, down) if self._transposed else (down, across)
        out.add_(self._elements(outputs, inputs), alpha=self._weight)


def _indices(view: View, axis: str, size: int, like: torch.Tensor) -> torch.Tensor:
    """The delta's own indices along `axis` that the view takes."""
    import torch

    part = part_of(view, axis)
    if part is None:
        return torch.arange(size, device=like.device)
    return torch.tensor(list(part.indices()), device=like.device)


class RowsUpdate:
    """`weight * D` for a D that is computed by ranges of rows, all columns at once."""

    def __init__(self, difference: Difference, view: View, weight: float) -> None:
        """`difference(first, last)` gives those rows of the delta, turned as the base stores it."""
        self._difference, self._weight = difference, weight
        self._rows = None if view.take_rows is None else list(view.take_rows.indices())
        taken = view.take_columns
        self._columns = None if taken is None else list(taken.indices())

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += weight * D[rows]."""
        if self._rows is None:
            tile = self._difference(rows.start, rows.stop)
        else:
            wanted = self._rows[rows]
            first = min(wanted)
            tile = self._difference(first, max(wanted) + 1)[[row - first for row in wanted]]
        if self._columns is not None:
            tile = tile[:, self._columns]
        out.add_(tile, alpha=self._weight)
