"""Spectra: how much of a delta's energy each rank keeps, a panel for each target.

The height counts nines: 0, 90, 99 and 99.9 % stand at equal distances, because the rank that one
needs is read off at the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median_high, median_low

from adaptool.model.module_grid import Arranged
from adaptool.model.results import ModuleRow
from adaptool.pages.style import DEPTH_STEPS
from adaptool.pages.text import escaped, number

MOST_PANELS = 24
MOST_POINTS = 64
MOST_CRAMPED = 4  # ranks on the axis, however few are needed
NINES = 3.5
LEFT, RIGHT, TOP, BOTTOM = 34, 252, 8, 126
_MARKS = ((0.0, "0"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"))


@dataclass(frozen=True, slots=True)
class Panel:
    """One target: its modules with a spectrum, each at its share of the depth (0 to 1).

    `stack` is named where there are several.
    """

    title: str
    stack: str
    rows: tuple[tuple[float, ModuleRow], ...]

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(len(row.energy or ()) for _, row in self.rows)


def panels(found: Arranged) -> list[Panel]:
    """Every target that has a spectrum, as the heatmap orders them."""
    made = []
    for grid in found.grids:
        stack = grid.stack if len(found.grids) > 1 else ""
        deepest = max(1, len(grid.layers) - 1)
        depth = {layer: place / deepest for place, layer in enumerate(grid.layers)}
        for target in grid.targets:
            places = [layer for layer in grid.layers if (layer, target) in grid.cells]
            rows = [
                (depth[layer], row)
                for layer in places
                for row in grid.cells[layer, target].rows
                if row.energy
            ]
            if rows:
                made.append(Panel(target, stack, tuple(rows)))
    made += [Panel(row.module, "", ((0.0, row),)) for row in found.alone if row.energy]
    return made


def spectra(found: Sequence[Panel]) -> Iterator[str]:
    """The panels side by side, at most 24, all with the same axes."""
    reach = max((_reach(row.energy or ()) for panel in found for _, row in panel.rows), default=1)
    yield '<div class="panels">'
    for panel in found[:MOST_PANELS]:
        yield from _panel(panel, max(MOST_CRAMPED, reach))
    yield "</div>"
    if len(found) > MOST_PANELS:
        hidden = len(found) - MOST_PANELS
        yield f'<p class="note">{hidden} more stand in the table of all modules.</p>'


def depth_key() -> str:
    """What the colours of the curves mean."""
    cells = "".join(
        f'<rect x="{step}" y="0" width="1.02" height="1" class="d{step}" stroke="none"/>'
        for step in range(DEPTH_STEPS)
    )
    return (
        '<div class="key"><span>first layer</span>'
        f'<svg viewBox="0 0 {DEPTH_STEPS} 1" preserveAspectRatio="none">{cells}</svg>'
        "<span>last layer</span></div>"
    )


def _reach(energy: Sequence[float]) -> int:
    """The rank at which a curve leaves its panel at the top."""
    full = (rank for rank, kept in enumerate(energy, start=1) if kept >= 1 - 10**-NINES)
    return next(full, len(energy))


def _panel(panel: Panel, reach: int) -> Iterator[str]:
    title = escaped(panel.title)
    yield f'<div class="panel"><h4>{title}</h4>'
    if panel.stack:
        yield f"<p><code>{escaped(panel.stack)}</code></p>"
    yield f"<p>{_caption(panel)}</p>"
    yield f'<svg viewBox="0 0 260 146" role="img" aria-label="{title}: kept energy by rank">'
    for share, label in _MARKS:
        kind = "mark" if share in (0.9, 0.99) else "grid"
        height = _y(share)
        yield f'<line class="{kind}" x1="{LEFT}" y1="{height}" x2="{RIGHT}" y2="{height}"/>'
        yield f'<text x="{LEFT - 4}" y="{height + 3:g}" text-anchor="end">{label}</text>'
    yield f'<line class="axis" x1="{LEFT}" y1="{BOTTOM}" x2="{RIGHT}" y2="{BOTTOM}"/>'
    for rank in _rank_ticks(reach):
        x = _x(rank, reach)
        yield f'<text x="{x}" y="{BOTTOM + 13}" text-anchor="middle">{rank}</text>'
    for depth, row in panel.rows:
        step = min(DEPTH_STEPS - 1, int(depth * DEPTH_STEPS))
        path = _path(row.energy or (), reach)
        name = f"{escaped(row.module)}&#10;effective rank {number(row.effective_rank)}"
        yield f'<path class="curve d{step}" d="{path}"><title>{name}</title></path>'
    yield from _usual(panel, reach)
    yield "</svg></div>"


def _caption(panel: Panel) -> str:
    ranks = [row.rank_at(0.99) or 0 for _, row in panel.rows]
    most = f" (≤ {max(ranks)})" if len(set(ranks)) > 1 else ""
    return f"99 % at rank {median_low(ranks)}{most} of {panel.rank}"


def _usual(panel: Panel, reach: int) -> Iterator[str]:
    """The median of all curves, and where it passes 90 and 99 %: the ranks' own (low) median."""
    energies = [row.energy or () for _, row in panel.rows]
    kept = [
        median_high(energy[min(rank, len(energy) - 1)] for energy in energies)
        for rank in range(panel.rank)
    ]
    yield f'<path class="usual" d="{_path(kept, reach)}"/>'
    for share in (0.9, 0.99):
        rank = next((at for at, each in enumerate(kept, start=1) if each >= share), None)
        if rank is None:
            continue
        x, y = _x(rank, reach), _y(kept[rank - 1])
        anchor, shift = ("end", -6) if rank > 0.8 * reach else ("start", 7)
        yield f'<circle cx="{x}" cy="{y}" r="3.2"/>'
        yield (
            f'<text class="value" x="{x + shift:g}" y="{y + 11:g}" text-anchor="{anchor}">'
            f"{rank}</text>"
        )


def _path(energy: Sequence[float], most: int) -> str:
    """The curve from rank 0 on, drawn until it leaves the panel."""
    ranks = range(1, len(energy) + 1)
    if len(energy) > MOST_POINTS:
        ranks_kept = {1 + round(at * (len(energy) - 1) / MOST_POINTS) for at in range(MOST_POINTS)}
        chosen = sorted({*ranks_kept, len(energy)})
    else:
        chosen = list(ranks)
    points = [f"M{_x(0, most)} {_y(0.0)}"]
    for rank in chosen:
        points.append(f"L{_x(rank, most)} {_y(energy[rank - 1])}")
        if energy[rank - 1] >= 1 - 10**-NINES:
            break
    return "".join(points)


def _x(rank: int, most: int) -> float:
    return round(LEFT + (RIGHT - LEFT) * rank / max(1, most), 1)


def _y(kept: float) -> float:
    nines = min(NINES, -math.log10(max(1 - kept, 10**-NINES)))
    return round(BOTTOM - (BOTTOM - TOP) * nines / NINES, 1)


def _rank_ticks(most: int) -> list[int]:
    step = next(each for each in (1, 2, 4, 8, 16, 32, 64, 128, 256, most) if most <= 8 * each)
    return list(range(0, most + 1, step))
