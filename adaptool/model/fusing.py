"""Factors of fused modules: one pair for q, k and v together, or one for each of them.

A fused pair A (r, in), B (out, r) splits exactly: the rows of B are the parts', A is common to
all. Where B is block-diagonal, as trainers that split and then store fused write it, each part
gets its own columns of B and rows of A, and with them its own rank back. Fusing is the inverse.
The scaling is the same on both sides, so alpha follows the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter

from adaptool.model.derived import (
    block_diagonal,
    joined,
    padded,
    reshaped,
    same_values,
    scaled,
    taken,
    used_columns,
    zeros,
)
from adaptool.model.view import Span
from adaptool.names.diffusion import Rows
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Pair:
    """A (r, in[, *kernel]), B (out, r[, 1, ...]) and the scaling of their product.

    `magnitude` is DoRA's, one number for each output: (out,).
    """

    a: TensorRef
    b: TensorRef
    scaling: float
    magnitude: TensorRef | None = None

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return self.a.shape[0]

    @property
    def out(self) -> int:
        """Rows of B."""
        return self.b.shape[0]


def split(pair: Pair, rows: Sequence[Rows]) -> list[Pair | None]:
    """The parts whose outputs `rows` names; None for one without anything beside others.

    Reads B where there are several parts, to see whether it is block-diagonal.
    """
    blocks = None
    if len(rows) > 1:
        blocks = _blocks([used_columns(taken_rows(pair.b, part)) for part in rows], pair.rank)
    parts: list[Pair | None] = []
    for place, named in enumerate(rows):
        magnitude = pair.magnitude and taken_rows(pair.magnitude, named)
        part = replace(pair, b=taken_rows(pair.b, named), magnitude=magnitude)
        if blocks is None:
            parts.append(part)
        elif blocks[place].length or magnitude is not None:
            parts.append(_narrowed(part, blocks[place]))
        else:
            parts.append(None)
    return parts


def taken_rows(ref: TensorRef, rows: Rows) -> TensorRef:
    """The rows of the ranges, in their order."""
    pieces = [taken(ref, Span(start, stop - start), 0) for start, stop in rows]
    return joined(pieces, 0)


def _narrowed(part: Pair, columns: Span) -> Pair:
    """Only these columns of B and rows of A; a part that uses none keeps one."""
    kept = columns if columns.length else Span(0, 1)
    return replace(part, a=taken(part.a, kept, 0), b=taken(part.b, kept, 1))


def _blocks(used: Sequence[tuple[int, int]], rank: int) -> list[Span] | None:
    """The columns of each part where no two parts share one; None where they do."""
    if not any(stop for _, stop in used):
        return None
    width, rest = divmod(rank, len(used))
    equal = [Span(place * width, width) for place in range(len(used))]
    if not rest and all(
        not stop or (block.start <= first and stop <= block.stop)
        for block, (first, stop) in zip(equal, used, strict=True)
    ):
        return equal
    ranges = sorted(found for found in used if found[1])
    if len(ranges) < 2 or any(left[1] > right[0] for left, right in pairwise(ranges)):
        return None
    return [Span(first, stop - first) for first, stop in used]


def fused(parts: Sequence[Pair | None], rows: Sequence[Rows]) -> Pair:
    """One pair for all parts, of which some (None) have no adapter; at least one has.

    Where A is the same in all, it stays; else A's are stacked and B is block-diagonal. Magnitudes
    are joined: every part has one, or none has.
    """
    present = [part for part in parts if part is not None]
    first = present[0]
    factors = [None if part is None else _at_scaling(part, first.scaling) for part in parts]
    magnitudes = [part.magnitude for part in present if part.magnitude is not None]
    magnitude = None
    if len(magnitudes) == len(parts):
        magnitude = _in_place(joined(magnitudes, 0), rows)
    sizes = [sum(stop - start for start, stop in named) for named in rows]
    if all(same_values(first.a, part.a) for part in present[1:]):
        blank = [(size, *first.b.shape[1:]) for size in sizes]
        b = joined(
            [
                zeros(first.b.name, first.b.dtype, shape) if ref is None else ref
                for ref, shape in zip(factors, blank, strict=True)
            ],
            0,
        )
        return Pair(first.a, _in_place(b, rows), first.scaling, magnitude)
    a = joined([part.a for part in present], 0)
    whole = _diagonal(factors, sizes)
    b = reshaped(whole, (*whole.shape, *first.b.shape[2:]))
    return Pair(a, _in_place(b, rows), first.scaling, magnitude)


def _at_scaling(part: Pair, scaling: float) -> TensorRef:
    """B for another scaling: one alpha serves all, so the ratio goes into the factor."""
    return part.b if part.scaling == scaling else scaled(part.b, part.scaling / scaling)


def _in_place(ref: TensorRef, rows: Sequence[Rows]) -> TensorRef:
    """The parts' rows one after the other, put where `rows` says: undoes `taken_rows`."""
    pieces, at = [], 0
    for start, stop in (each for named in rows for each in named):
        pieces.append((start, Span(at, stop - start)))
        at += stop - start
    if [start for start, _ in pieces] == sorted(start for start, _ in pieces):
        return ref
    return joined([taken(ref, span, 0) for _, span in sorted(pieces, key=itemgetter(0))], 0)


def _diagonal(factors: Sequence[TensorRef | None], sizes: Sequence[int]) -> TensorRef:
    """B's on a diagonal; where there is none, as many rows of zeros."""
    blocks: list[TensorRef] = []
    before = 0
    for ref, size in zip(factors, sizes, strict=True):
        if ref is not None:
            blocks.append(reshaped(ref, ref.shape[:2]))
        elif blocks:
            blocks[-1] = padded(blocks[-1], blocks[-1].shape[0] + size, 0)
        else:
            before += size
    whole = block_diagonal(blocks)
    if not before:
        return whole
    return joined([zeros(whole.name, whole.dtype, (before, whole.shape[1])), whole], 0)
