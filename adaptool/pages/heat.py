"""Heatmaps of layers and targets, and the matrix of similarities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from adaptool.model.module_grid import Arranged, Cell, Grid, Scale, scale_of
from adaptool.pages.style import COSINE_STEPS, HEAT_STEPS
from adaptool.pages.text import escaped, number, percent, spread


def shared_scale(found: Iterable[Arranged], *, relative: bool) -> Scale | None:
    """One scale for the heatmaps of several adapters, so that they can be compared."""
    cells = (cell for each in found for grid in each.grids for cell in grid.cells.values())
    values = (_value(cell, relative=relative) for cell in cells)
    return scale_of((value for value in values if value is not None), HEAT_STEPS)


def heatmaps(found: Arranged, scale: Scale, *, relative: bool) -> Iterator[str]:
    """One card a stack of layers; |delta| / |W| where `relative`, else |delta|."""
    yield _key(scale, relative=relative)
    for grid in found.grids:
        yield '<div class="card">'
        if len(found.grids) > 1:
            yield f"<h4><code>{escaped(grid.stack)}</code></h4>"
        yield '<div class="heat">'
        for target in grid.targets:
            yield from _strip(grid, target, scale, relative=relative)
        yield f'<div class="ticks">{_ticks(grid)}</div></div></div>'


def _value(cell: Cell, *, relative: bool) -> float | None:
    return cell.relative if relative else cell.norm


def _shown(value: float | None, *, relative: bool) -> str:
    return percent(value) if relative else number(value)


def _strip(grid: Grid, target: str, scale: Scale, *, relative: bool) -> Iterator[str]:
    """One target through all layers: its name, a cell a layer, and the range of values."""
    name = escaped(target)
    yield f'<div class="name" title="{name}">{name}</div>'
    yield (
        f'<svg viewBox="0 0 {len(grid.layers)} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{name}">'
    )
    values = []
    for place, layer in enumerate(grid.layers):
        cell = grid.cells.get((layer, target))
        value = _value(cell, relative=relative) if cell is not None else None
        if cell is None or value is None:
            continue
        values.append(100 * value if relative else value)
        yield (
            f'<rect x="{place}" y="0" width="1" height="1" class="h{scale.step(value)}">'
            f"<title>{_title(grid, layer, target, cell)}</title></rect>"
        )
    unit = " %" if relative and values else ""
    yield f'</svg><div class="range">{spread(values)}{unit}</div>'


def _title(grid: Grid, layer: str, target: str, cell: Cell) -> str:
    name = cell.rows[0].module
    if len(cell.rows) > 1:
        name = f"{grid.stack}, layer {layer}: {len(cell.rows)} times {target}"
    lines = [escaped(name), f"|Δ| {number(cell.norm)}"]
    if cell.relative is not None:
        lines.append(f"|Δ| / |W| {percent(cell.relative)}")
    if len(cell.rows) == 1 and cell.rows[0].effective_rank is not None:
        row = cell.rows[0]
        lines.append(f"effective rank {number(row.effective_rank)} of {row.rank}")
        lines.append(f"99 % of the energy at rank {row.rank_at(0.99)}")
    return "&#10;".join(lines)


def _ticks(grid: Grid) -> str:
    count = len(grid.layers)
    step = next(each for each in (1, 2, 4, 5, 8, 10, 20, 50, 100, count) if count / each <= 12)
    return "".join(
        f'<span style="left:{100 * (place + 0.5) / count:.2f}%">{escaped(layer)}</span>'
        for place, layer in enumerate(grid.layers)
        if place % step == 0
    )


def _key(scale: Scale, *, relative: bool) -> str:
    cells = "".join(
        f'<rect x="{step}" y="0" width="1.02" height="1" class="h{step}"/>'
        for step in range(HEAT_STEPS)
    )
    what = "|Δ| / |W|" if relative else "|Δ|"
    steps = ", logarithmic" if scale.logarithmic else ""
    low, high = (_shown(value, relative=relative) for value in (scale.low, scale.high))
    return (
        f'<div class="key"><span>{what}{steps}</span><span>{low}</span>'
        f'<svg viewBox="0 0 {HEAT_STEPS} 1" preserveAspectRatio="none">{cells}</svg>'
        f"<span>{high}</span></div>"
    )


def matrix(names: Sequence[str], cosines: Sequence[Sequence[float | None]]) -> Iterator[str]:
    """A table of cosines, blue where two adapters agree, red where they oppose each other."""
    shown = [f'<th scope="col">{escaped(name)}</th>' for name in names]
    yield '<div class="card wide"><table class="matrix"><thead><tr><td></td>'
    yield f"{''.join(shown)}</tr></thead><tbody>"
    for name, row in zip(names, cosines, strict=True):
        yield f'<tr><th scope="row">{escaped(name)}</th>'
        for other, cosine in zip(names, row, strict=True):
            title = f"{escaped(name)}&#10;{escaped(other)}"
            yield f'<td{_shade(cosine)} title="{title}">{_cosine(cosine)}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"


def _shade(cosine: float | None) -> str:
    if cosine is None:
        return ""
    step = min(COSINE_STEPS - 1, max(0, round((cosine + 1) / 2 * (COSINE_STEPS - 1))))
    return f' class="c{step}"'


def _cosine(cosine: float | None) -> str:
    return number(None) if cosine is None else f"{cosine + 0.0:.2f}".replace("-0.00", "0.00")
