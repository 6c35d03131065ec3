"""The outlet of `verify`: computed bytes against a checkpoint's."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.engine.tiles import CopyJob
from adaptool.model.plan import Row
from adaptool.model.results import Difference
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np

    Patterns = np.ndarray[Any, np.dtype[Any]]

BLOCK = 4 * 1024 * 1024
# Integers of a dtype's size: their order is the values' order below the sign bit.
_PATTERNS = {8: "int8", 16: "int16", 32: "int32", 64: "int64"}

# Digits after the leading one.
_MANTISSA = {"BF16": 7, "F16": 10, "F32": 23}


@dataclass(slots=True)
class _Found:
    """Running totals of one tensor."""

    wrong: int = 0
    largest: int = 0


class ComparingOutlet:
    """Compares instead of writing; memory is one block per worker."""

    def __init__(self, merged: Mapping[str, TensorRef], *, tolerance: int) -> None:
        """`merged` by name, same dtypes and shapes; `tolerance` in steps of the dtype.

        A step is that of the result or, where the delta nearly cancels the base, of the base.
        """
        self._merged = merged
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self._found: dict[str, _Found] = {}

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Compare a computed tile with the same bytes of the merged model."""
        ref = self._merged.get(row.name)
        if ref is None:
            return
        theirs = bytearray(len(content))
        ref.source.read_into(ref.offset + start, memoryview(theirs))
        self._compare(row, start, content, memoryview(theirs))

    def copy(self, job: CopyJob) -> None:
        """Compare the part of each copied tensor that lies in the job."""
        for row in job.rows:
            ref = self._merged.get(row.name)
            if ref is None:
                continue
            low, high = _elements_in(row, job)
            for begin in range(low, high, BLOCK):
                self._compare_copy(row, ref, begin, min(BLOCK, high - begin))

    def _compare_copy(self, row: Row, ref: TensorRef, place: int, size: int) -> None:
        ours, theirs = bytearray(size), bytearray(size)
        row.source.source.read_into(row.source.offset + place, memoryview(ours))
        ref.source.read_into(ref.offset + place, memoryview(theirs))
        if ours != theirs:
            self._compare(row, place, memoryview(ours), memoryview(theirs))

    def _compare(self, row: Row, place: int, ours: memoryview, theirs: memoryview) -> None:
        import numpy as np

        pattern = _PATTERNS.get(row.dtype.bits, "int8")
        left, right = np.frombuffer(ours, pattern), np.frombuffer(theirs, pattern)
        where = np.flatnonzero(left != right)
        if not len(where):
            return
        steps = _steps(left[where], right[where], floating=row.dtype.floating)
        beyond = steps > self._tolerance
        if self._tolerance > 0 and row.pieces and beyond.any():
            beyond &= ~_cancelled(row, place, left, right, where)
        wrong = int(beyond.sum())
        with self._lock:
            found = self._found.setdefault(row.name, _Found())
            found.wrong += wrong
            found.largest = max(found.largest, int(steps.max()))

    def differences(self, rows: Mapping[str, Row]) -> list[Difference]:
        """The tensors with an element beyond the tolerance, in the plan's order."""
        return [
            Difference(
                tensor=name,
                max_ulp=self._found[name].largest,
                fraction=self._found[name].wrong / max(1, row.source.elements),
                reason=f"{self._found[name].wrong} of {row.source.elements} elements differ",
            )
            for name, row in rows.items()
            if name in self._found and self._found[name].wrong
        ]


def _elements_in(row: Row, job: CopyJob) -> tuple[int, int]:
    """The bytes of `row` that a job stands for, in whole elements, each in one job only.

    Jobs are cut without regard to elements: one that a cut goes through belongs to the later job.
    """
    size = max(1, row.dtype.bits // 8)
    low = max(0, job.offset - row.offset) // size * size
    high = min(row.length, job.offset + job.length - row.offset)
    return low, high if high == row.length else high // size * size


def _cancelled(row: Row, place: int, ours: Patterns, theirs: Patterns, where: Patterns) -> Patterns:
    """Elements at `where` that are within one step of the base's value, though not of their own.

    Where W and the delta nearly cancel, the result is small and its steps are too: float32
    arithmetic, right to its own digits, is then many of them away from float64.
    """
    import numpy as np

    if row.source.dtype != row.dtype or row.dtype.name not in _MANTISSA:
        return np.zeros(len(where), bool)
    raw = bytearray(ours.nbytes)
    row.source.source.read_into(row.source.offset + place, memoryview(raw))
    base = np.frombuffer(raw, ours.dtype)
    before, left, right = (_values(part[where], row.dtype.name) for part in (base, ours, theirs))
    with np.errstate(invalid="ignore", over="ignore"):
        _, exponent = np.frexp(np.maximum(np.abs(before), np.abs(left)))
        step = np.ldexp(1.0, exponent - 1 - _MANTISSA[row.dtype.name])
        close: Patterns = np.abs(left - right) <= step
    return close


def _values(patterns: Patterns, name: str) -> Patterns:
    """Floats from their bit patterns, in float64."""
    import numpy as np

    if name == "BF16":
        wide = patterns.astype(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    return patterns.view({"F16": np.float16, "F32": np.float32}[name]).astype(np.float64)


def _steps(left: Patterns, right: Patterns, *, floating: bool) -> Patterns:
    """Distance in steps of the dtype; two patterns of other dtypes are their difference apart.

    In 64-bit integers: float64 has too few digits to tell neighbouring F64 patterns apart.
    """
    import numpy as np

    first, second = left.astype(np.int64), right.astype(np.int64)
    if floating:
        lowest = int(np.iinfo(left.dtype).min)
        first, second = _ordered(first, lowest), _ordered(second, lowest)
    high, low = np.maximum(first, second), np.minimum(first, second)
    # Up to 2**64 - 1, which an unsigned difference of the same bits holds.
    distance: Patterns = high.view(np.uint64) - low.view(np.uint64)
    return distance


def _ordered(patterns: Patterns, lowest: int) -> Patterns:
    """Bit patterns of floats as numbers that grow with the value; -0 and 0 are the same."""
    import numpy as np

    ordered: Patterns = np.where(patterns < 0, lowest - patterns, patterns)
    return ordered
