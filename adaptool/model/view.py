"""Where a delta lies in a base tensor: index maps, one per axis.

A base tensor is seen as a matrix: its first `fold` axes become rows, the rest columns. A linear
weight (out, in) and a convolution kernel (out, in, *k) fold 1 axis, stacked experts (E, out, in)
fold 2. A view says which rows and columns of that matrix a delta updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """An index map along one axis.

    Element `b * length + i` lies at `start + b * stride + i * step`, for b in 0..blocks and
    i in 0..length: a whole axis, a slice of a fused qkv, the heads of GPT-NeoX (blocks), the
    alternating gate and up rows of gpt-oss (step 2).
    """

    start: int
    length: int
    step: int = 1
    blocks: int = 1
    stride: int = 0

    @property
    def count(self) -> int:
        """Number of indices."""
        return self.length * self.blocks

    @property
    def stop(self) -> int:
        """One past the last index."""
        if not self.count:
            return self.start
        return self.start + (self.blocks - 1) * self.stride + (self.length - 1) * self.step + 1

    def is_whole(self, size: int) -> bool:
        """Whether it is the identity on an axis of `size`."""
        return (self.start, self.step, self.blocks, self.length) == (0, 1, 1, size)

    def overlaps(self, other: Span) -> bool:
        """Whether both name an index."""
        return not set(self.indices()).isdisjoint(other.indices())

    def indices(self) -> Iterator[int]:
        """Every index, in order."""
        for block in range(self.blocks):
            first = self.start + block * self.stride
            yield from range(first, first + self.length * self.step, self.step)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """The part of the span inside [start, stop), as pairs (axis slice, own slice).

        Axis slices are relative to `start`.
        """
        for block in range(self._first_block(start), self.blocks):
            first = self.start + block * self.stride
            if first >= stop:
                return
            low = max(0, -(-(start - first) // self.step))
            high = min(self.length, -(-(stop - first) // self.step))
            if low < high:
                begin = first + low * self.step - start
                end = first + (high - 1) * self.step + 1 - start
                own = block * self.length
                yield slice(begin, end, self.step), slice(own + low, own + high)

    def _first_block(self, start: int) -> int:
        if self.blocks == 1 or self.stride <= 0:
            return 0
        reach = self.start + (self.length - 1) * self.step
        return max(0, min(self.blocks, -(-(start - reach) // self.stride)))

    def as_json(self) -> list[int]:
        """`[start, length]`, or with step, blocks and stride where they matter."""
        if self.blocks == 1 and self.step == 1:
            return [self.start, self.length]
        return [self.start, self.length, self.step, self.blocks, self.stride]


def whole(size: int) -> Span:
    """The identity on an axis of `size`."""
    return Span(0, size)


@dataclass(frozen=True, slots=True)
class View:
    """How a delta (out, in) sits in a base matrix (rows, columns).

    The delta is transposed first where `transposed`; then the elements `take_rows`, `take_columns`
    of it (None: all) update the elements `rows`, `columns` of the base matrix.
    `expert` picks one of a stacked delta's matrices.
    """

    rows: Span
    columns: Span
    fold: int = 1
    transposed: bool = False
    take_rows: Span | None = None
    take_columns: Span | None = None
    expert: int | None = None

    def overlaps(self, other: View) -> bool:
        """Whether both name an element of one base matrix."""
        return self.rows.overlaps(other.rows) and self.columns.overlaps(other.columns)

    def as_json(self) -> dict[str, object]:
        """The view in the plan's table."""
        body: dict[str, object] = {"rows": self.rows.as_json(), "columns": self.columns.as_json()}
        if self.transposed:
            body["transposed"] = True
        if self.take_rows is not None:
            body["take_rows"] = self.take_rows.as_json()
        if self.take_columns is not None:
            body["take_columns"] = self.take_columns.as_json()
        if self.expert is not None:
            body["expert"] = self.expert
        return body
