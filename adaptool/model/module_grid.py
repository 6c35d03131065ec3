"""Modules laid out as layer x target: what a heatmap's cells stand for.

A layer is what comes before the first number of a module's path, with it
(`model.layers.3` of `model.layers.3.mlp.up_proj`); where a block repeats inside a block, as in a
UNet, the inner number counts as well. Numbers of experts do not: a cell sums them up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from adaptool.model.results import ModuleRow

# As data passes through a layer; other targets follow in the order of the file.
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class Cell:
    """The modules at one place of a grid: one, or the experts of a layer."""

    rows: tuple[ModuleRow, ...]

    @property
    def norm(self) -> float | None:
        """|delta| over all of them; None where one is unknown."""
        return _root(row.norm for row in self.rows)

    @property
    def relative(self) -> float | None:
        """|delta| / |W| over all of them."""
        norm, base = self.norm, _root(row.base_norm for row in self.rows)
        return norm / base if norm is not None and base else None


@dataclass(frozen=True, slots=True)
class Grid:
    """One stack of layers: `cells` by (layer, target); not every place is taken.

    `stack` has a star for each number of the layer but the last (`down_blocks.*.attentions`), and
    a layer all of them (`1.0`).
    """

    stack: str
    layers: tuple[str, ...]
    targets: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]


@dataclass(frozen=True, slots=True)
class Arranged:
    """All modules of an adapter: in stacks of at least two layers, or alone."""

    grids: tuple[Grid, ...]
    alone: tuple[ModuleRow, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers mapped to `steps` steps of equal width, of equal ratio where they spread widely."""

    low: float
    high: float
    logarithmic: bool
    steps: int

    def step(self, value: float) -> int:
        """0 for the smallest value, `steps` - 1 for the largest; zeros are the smallest."""
        low, high = self.low, self.high
        if self.logarithmic:
            if value <= 0:
                return 0
            value, low, high = math.log(value), math.log(low), math.log(high)
        if high <= low:
            return self.steps // 2
        place = int((value - low) / (high - low) * self.steps)
        return max(0, min(self.steps - 1, place))


def scale_of(values: Iterable[float], steps: int) -> Scale | None:
    """A scale over all values, None where there are none; logarithmic from a ratio of 30 on."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    positive = [value for value in known if value > 0]
    low, high = min(known), max(known)
    if positive and high > 30 * min(positive):
        return Scale(min(positive), high, logarithmic=True, steps=steps)
    return Scale(low, high, logarithmic=False, steps=steps)


def arranged(rows: Sequence[ModuleRow]) -> Arranged:
    """Every module in one place."""
    stacks: dict[str, list[_Member]] = {}
    alone: list[ModuleRow] = []
    for row in rows:
        parts = row.module.split(".")
        first = next((at for at, part in enumerate(parts) if _is_number(part)), 0)
        if first:
            member = _Member(row, (parts[first],), tuple(parts[first + 1 :]))
            stacks.setdefault(".".join(parts[:first]), []).append(member)
        else:
            alone.append(row)
    grids = []
    for stack, members in stacks.items():
        for name, inner in _split(stack, members):
            grid = _grid(name, inner)
            if len(grid.layers) > 1:
                grids.append(grid)
            else:
                alone += [member.row for member in inner]
    return Arranged(tuple(grids), tuple(alone))


@dataclass(frozen=True, slots=True)
class _Member:
    """A module of a stack: the numbers of its layer, and what follows them."""

    row: ModuleRow
    numbers: tuple[str, ...]
    rest: tuple[str, ...]

    @property
    def inner(self) -> str | None:
        """The name of a block in the block, where a number follows it and more after that."""
        if len(self.rest) < 3 or not _is_number(self.rest[1]) or self.rest[0] == _EXPERTS:
            return None
        return self.rest[0]

    def deeper(self) -> _Member:
        """The same module with the inner block's number as part of its layer."""
        return _Member(self.row, (*self.numbers, self.rest[1]), self.rest[2:])


def _split(stack: str, members: list[_Member]) -> Iterator[tuple[str, list[_Member]]]:
    """The stack, and each stack inside its layers whose blocks repeat the same targets."""
    blocks: dict[str | None, list[_Member]] = {}
    for member in members:
        blocks.setdefault(member.inner, []).append(member)
    plain = blocks.pop(None, [])
    for name, found in blocks.items():
        if _repeats(found):
            yield from _split(f"{stack}.*.{name}", [member.deeper() for member in found])
        else:
            plain += found
    if plain:
        yield stack, plain


def _repeats(members: Iterable[_Member]) -> bool:
    """Whether one target stands under several numbers of a layer: not so in T5's sublayers."""
    seen: dict[tuple[tuple[str, ...], tuple[str, ...]], set[str]] = {}
    for member in members:
        seen.setdefault((member.numbers, member.rest[2:]), set()).add(member.rest[1])
    return any(len(numbers) > 1 for numbers in seen.values())


def _grid(stack: str, members: list[_Member]) -> Grid:
    taken: dict[tuple[str, str], list[ModuleRow]] = {}
    for member in members:
        target = _target(member.rest) or stack.rpartition(".")[2]
        taken.setdefault((".".join(member.numbers), target), []).append(member.row)
    cells = {place: Cell(tuple(found)) for place, found in taken.items()}
    layers = sorted({layer for layer, _ in cells}, key=_numeric)
    targets = sorted(dict.fromkeys(target for _, target in cells), key=target_order)
    return Grid(stack, tuple(layers), tuple(targets), cells)


def _target(parts: Sequence[str]) -> str:
    before = ("", *parts)
    named = [
        "*" if _is_number(part) and name == _EXPERTS else part
        for name, part in zip(before, parts, strict=False)
    ]
    return ".".join(named)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10


def _numeric(layer: str) -> list[int]:
    return [int(number) for number in layer.split(".")]


def target_order(target: str) -> int:
    """Sorts targets as data passes through a layer; those unknown come last, as they stand."""
    leaf = target.rpartition(".")[2]
    return _ORDER.index(leaf) if leaf in _ORDER else len(_ORDER)


def _root(norms: Iterable[float | None]) -> float | None:
    found = list(norms)
    known = [norm for norm in found if norm is not None and math.isfinite(norm)]
    return math.hypot(*known) if known and len(known) == len(found) else None
