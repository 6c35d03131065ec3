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


@dataclass(slots=True)
class _Found:
    """Running totals of one tensor."""

    wrong: int = 0
    largest: int = 0


class ComparingOutlet:
    """Compares instead of writing; memory is one block per worker."""

    def __init__(self, merged: Mapping[str, TensorRef], *, tolerance: int) -> None:
        """`merged` by name, same dtypes and shapes; `tolerance` in steps of the dtype."""
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
        self._compare(row, content, memoryview(theirs))

    def copy(self, job: CopyJob) -> None:
        """Compare the part of each copied tensor that lies in the job."""
        for row in job.rows:
            low = max(row.offset, job.offset)
            high = min(row.offset + row.length, job.offset + job.length)
            ref = self._merged.get(row.name)
            if ref is None:
                continue
            for begin in range(low, high, BLOCK):
                self._compare_copy(row, ref, begin - row.offset, min(BLOCK, high - begin))

    def _compare_copy(self, row: Row, ref: TensorRef, place: int, size: int) -> None:
        ours, theirs = bytearray(size), bytearray(size)
        row.source.source.read_into(row.source.offset + place, memoryview(ours))
        ref.source.read_into(ref.offset + place, memoryview(theirs))
        if ours != theirs:
            self._compare(row, memoryview(ours), memoryview(theirs))

    def _compare(self, row: Row, ours: memoryview, theirs: memoryview) -> None:
        import numpy as np

        pattern = _PATTERNS.get(row.dtype.bits, "int8")
        left, right = np.frombuffer(ours, pattern), np.frombuffer(theirs, pattern)
        where = np.flatnonzero(left != right)
        if not len(where):
            return
        steps = _steps(left[where], right[where], floating=row.dtype.floating)
        wrong = int((steps > self._tolerance).sum())
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


def _steps(left: Patterns, right: Patterns, *, floating: bool) -> Patterns:
    """Distance in steps of the dtype; two patterns of other dtypes are their difference apart."""
    import numpy as np

    if floating:
        distance = np.abs(_ordered(left) - _ordered(right))
    else:
        distance = np.abs(left.astype(np.float64) - right.astype(np.float64))
    least: Patterns = np.maximum(distance, 0 if floating else 1)
    return least


def _ordered(patterns: Patterns) -> Patterns:
    """Bit patterns of floats as numbers that grow with the value; -0 and 0 are the same."""
    import numpy as np

    exact = patterns.astype(np.float64)
    lowest = float(np.iinfo(patterns.dtype).min)
    ordered: Patterns = np.where(exact < 0, lowest - exact, exact)
    return ordered
