"""Deltas that change a few elements of W, each named by its output and its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.model.adapter import Terms
from adaptool.model.view import Span, View

if TYPE_CHECKING:
    import torch


class SparseUpdate:
    """`weight * v` at some elements."""

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> None:
        """One row, one column and one value for every element; sorted here by row."""
        import torch

        order = torch.argsort(rows, stable=True)
        self._rows, self._columns = rows[order].contiguous(), columns[order]
        self._values = values[order]

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += weight * v for the elements in `rows`."""
        import torch

        bounds = torch.tensor([rows.start, rows.stop], device=self._rows.device)
        first, last = torch.searchsorted(self._rows, bounds).tolist()
        place = (self._rows[first:last] - rows.start, self._columns[first:last])
        out.index_put_(place, self._values[first:last], accumulate=True)


def sparse_update(
    outputs: torch.Tensor, inputs: torch.Tensor, values: torch.Tensor, terms: Terms, view: View
) -> SparseUpdate:
    """The elements that lie under `view`; an element that is named twice takes the sum.

    `outputs` and `inputs` must lie within the sizes of `terms`.
    """
    rows, columns = (inputs, outputs) if view.transposed else (outputs, inputs)
    height, width = (terms.inner, terms.out) if view.transposed else (terms.out, terms.inner)
    rows, columns = _taken(rows, view.take_rows, height), _taken(columns, view.take_columns, width)
    inside = (rows >= 0) & (columns >= 0)
    return SparseUpdate(rows[inside], columns[inside], values[inside])


def _taken(indices: torch.Tensor, part: Span | None, size: int) -> torch.Tensor:
    """Where each index lies in `part` of an axis of `size`; -1 outside of it."""
    if part is None:
        return indices
    places = indices.new_full((size,), -1)
    places[list(part.indices())] = indices.new_tensor(range(part.count))
    return places[indices]
