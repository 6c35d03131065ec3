"""How much adapters point the same way, from their factors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptool.model.adapter import Adapter, Delta
from adaptool.model.values import ValueReader

Matrix = tuple[tuple[float | None, ...], ...]


def similarity(adapters: Sequence[Adapter | None], values: ValueReader) -> Matrix:
    """Cosines between whole adapters: <A, B> / (|A| |B|) over the union of their modules.

    A module that an adapter lacks counts as zero there. None where one of the two is no low-rank
    adapter, is zero or not finite, or where the two change one module in different shapes.
    """
    places = list(range(len(adapters)))
    sums = [[0.0] * len(adapters) for _ in places]
    unknown: set[int] = {place for place in places if adapters[place] is None}
    apart: set[tuple[int, int]] = set()
    for present in _by_parameter(adapters).values():
        for group in _of_one_shape(present):
            _add(sums, unknown, group, values)
        apart |= {
            (i, j) for i, one in present for j, other in present if shape(one) != shape(other)
        }
    return tuple(
        tuple(None if {i, j} & unknown or (i, j) in apart else _cosine(sums, i, j) for j in places)
        for i in places
    )


def shape(delta: Delta) -> tuple[int, int, int]:
    """What two deltas must share to be compared: outputs, inputs, stacked matrices."""
    return delta.terms.out, delta.terms.inner, delta.terms.experts


_Present = list[tuple[int, Delta]]


def _by_parameter(adapters: Sequence[Adapter | None]) -> dict[str, _Present]:
    found: dict[str, _Present] = {}
    for place, adapter in enumerate(adapters):
        for delta in adapter.deltas if adapter is not None else ():
            found.setdefault(delta.parameter, []).append((place, delta))
    return found


def _of_one_shape(present: _Present) -> list[_Present]:
    groups: dict[tuple[int, int, int], _Present] = {}
    for place, delta in present:
        groups.setdefault(shape(delta), []).append((place, delta))
    return list(groups.values())


def _add(
    sums: list[list[float]], unknown: set[int], present: _Present, values: ValueReader
) -> None:
    """Inner products of all that have this module; who is no product is unknown from then on."""
    known = [(place, delta) for place, delta in present if place not in unknown]
    table = values.gram([delta for _, delta in known])
    if table is None:
        unknown |= {place for place, delta in known if values.gram([delta]) is None}
        _add(sums, unknown, known, values)
        return
    for row, (i, _) in zip(table, known, strict=True):
        for entry, (j, _) in zip(row, known, strict=True):
            sums[i][j] += entry


def _cosine(sums: Sequence[Sequence[float]], i: int, j: int) -> float | None:
    scale = math.sqrt(abs(sums[i][i])) * math.sqrt(abs(sums[j][j]))
    if not scale or not math.isfinite(scale) or not math.isfinite(sums[i][j]):
        return None
    return 1.0 if i == j else max(-1.0, min(1.0, sums[i][j] / scale))
