"""Scales that lie on a grid: one for each block of rows and columns of a weight.

A block of `height` x `width` covers a whole tensor, a row, a group of columns, or a square. The
last row and column of blocks may be cut by the weight's edge. Rows repeat the grid with a
`period`: the rows of one matrix, where several are stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.model.quantizer import Packed, Parts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the scale of an element lies, for a weight of so many rows and columns in a matrix."""

    period: int
    columns: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Scales of one matrix: down and across."""
        return -(-self.period // self.height), -(-self.columns // self.width)

    def as_json(self) -> dict[str, int]:
        """For `Packed.settings`."""
        return {"period": self.period, "height": self.height, "width": self.width}


def grid_of(packed: Packed) -> Grid:
    """The grid that `packed.settings["grid"]` describes."""
    stored: Any = packed.settings["grid"]
    return Grid(stored["period"], packed.columns, stored["height"], stored["width"])


def place(grid: Grid, row: int) -> int:
    """The row of the grid, over all stacked matrices, for a row of the weight."""
    matrix, inside = divmod(row, grid.period)
    return matrix * grid.shape[0] + inside // grid.height


def rows_of_scales(parts: Parts, packed: Packed, role: str, start: int, stop: int) -> torch.Tensor:
    """The scales of weight rows [start, stop), (rows, blocks across); only these are read."""
    grid = grid_of(packed)
    across = grid.shape[1]
    if start == stop:
        return parts.span(role, 0, 0).reshape(0, across)
    first, last = place(grid, start), place(grid, stop - 1) + 1
    stored = parts.span(role, first * across, last * across).reshape(-1, across)
    return stored[places(grid, start, stop) - first]


def places(grid: Grid, start: int, stop: int) -> torch.Tensor:
    """The row of the grid for each of the weight's rows [start, stop)."""
    import torch

    wanted = torch.arange(start, stop)
    matrix = wanted // grid.period
    inside = (wanted - matrix * grid.period) // grid.height
    return matrix * grid.shape[0] + inside


def scaled(
    values: torch.Tensor, scales: torch.Tensor, width: int, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """(rows, columns) values times (rows, blocks) scales, in the dtype that torch promotes to.

    `zeros`, (rows, blocks), are taken away first.
    """
    import torch

    full = values.shape[1] // width
    cut = full * width
    pieces = []
    if full:
        pieces.append(_scaled(values[:, :cut], scales[:, :full], _columns(zeros, 0, full)))
    if cut < values.shape[1]:
        pieces.append(_scaled(values[:, cut:], scales[:, full:], _columns(zeros, full, full + 1)))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _columns(zeros: torch.Tensor | None, first: int, last: int) -> torch.Tensor | None:
    return None if zeros is None else zeros[:, first:last]


def _scaled(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    rows, columns = values.shape
    across = scales.shape[1]
    blocks = values.reshape(rows, across, columns // across)
    if zeros is not None:
        blocks = blocks - zeros[:, :, None]
    product: torch.Tensor = blocks * scales[:, :, None]
    return product.reshape(rows, columns)


def is_grid(shape: Sequence[int], grid: Grid, stacked: Sequence[int] = ()) -> bool:
    """Whether scales of `shape` are this grid, under the axes of the stack."""
    return tuple(shape) == (*stacked, *grid.shape)
