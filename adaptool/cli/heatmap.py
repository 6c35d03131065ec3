"""Layers and targets as rows of blocks, for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from adaptool.cli.text import percent, printable
from adaptool.model.module_grid import Cell, Grid, Scale, arranged, scale_of
from adaptool.model.results import ModuleRow

if TYPE_CHECKING:
    from rich.console import RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
DIGITS = "12345678"  # where the terminal's encoding has no blocks
_COLOURS = (24, 25, 31, 32, 38, 39, 45, 51)


def heatmap(rows: Sequence[ModuleRow]) -> Iterator[RenderableType]:
    """One line a target, one block a layer; nothing where there are no two layers."""
    found = arranged(rows)
    relative = any(row.relative_norm is not None for row in rows)
    values = [
        _value(cell, relative=relative) for grid in found.grids for cell in grid.cells.values()
    ]
    scale = scale_of((value for value in values if value is not None), len(BLOCKS))
    if scale is None:
        return
    for grid in found.grids:
        yield from _grid(grid, scale, relative=relative)


def _value(cell: Cell, *, relative: bool) -> float | None:
    return cell.relative if relative else cell.norm


def _grid(grid: Grid, scale: Scale, *, relative: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    blocks = _blocks()
    width = max(len(printable(target)) for target in grid.targets)
    what = "|delta| / |W|" if relative else "|delta|"
    yield f"{what} of {printable(grid.stack)}, {grid.layers[0]} to {grid.layers[-1]}"
    for target in grid.targets:
        line = Text(f"  {printable(target):<{width}}  ")
        values = []
        for layer in grid.layers:
            cell = grid.cells.get((layer, target))
            value = _value(cell, relative=relative) if cell is not None else None
            if value is None:
                line.append(" ")
                continue
            step = scale.step(value)
            line.append(blocks[step], style=f"color({_COLOURS[step]})")
            values.append(value)
        yield line.append(f"  {_range(values, relative=relative)}")


def _range(values: Sequence[float], *, relative: bool) -> str:
    if not values:
        return "-"
    shown = [percent(value) if relative else f"{value:.3g}" for value in (min(values), max(values))]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def _blocks() -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return DIGITS
    return BLOCKS
