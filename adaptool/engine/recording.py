"""What a merge rounds away, seen tile by tile.

Where the plan adds float64 deltas to a tensor of the output's own dtype, the tiles of the merge
itself tell: with M what was stored and `out` what was rounded, subtracting the delta from M gives
W + (M - out), to 2^-52. Every other tensor is subtracted in a run of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptool.engine.blocks import block_elements, content
from adaptool.engine.outlets import Outlet
from adaptool.engine.tiles import CopyJob
from adaptool.model.plan import Row
from adaptool.model.reversal import Restoration
from adaptool.store.spill import Spill
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np
    import torch

    from adaptool.engine.bits import Format
    from adaptool.engine.codec import Marks

    Array = np.ndarray[Any, np.dtype[Any]]

Streams = dict[str, list[tuple[int, int]]]


@dataclass(slots=True)
class _Seen:
    """What was seen of one tensor so far."""

    elements: int = 0
    parts: dict[int, Marks] = field(default_factory=dict)


class Recorder:
    """Takes tiles in any order; once a tensor is whole, its streams are spilled."""

    def __init__(self, restorations: Mapping[str, Restoration], spill: Spill) -> None:
        """`restorations` by the name of the row that is watched."""
        self._restorations, self._spill = restorations, spill
        self._seen: dict[str, _Seen] = {name: _Seen() for name in restorations}
        self._lock = threading.Lock()
        self.streams: Streams = {}

    def wants(self, row: Row) -> bool:
        """Whether this row's tiles are of use."""
        return row.name in self._restorations

    def take(self, name: str, first: int, count: int, marks: Marks) -> None:
        """Marks of elements [first, first + count) of the row `name`."""
        with self._lock:
            seen = self._seen[name]
            seen.parts[first] = marks
            seen.elements += count
            base = self._restorations[name].base
            if seen.elements < base.elements:
                return
            del self._seen[name]
        self.streams[base.name] = self._spilled(name, seen)

    def _spilled(self, name: str, seen: _Seen) -> list[tuple[int, int]]:
        from adaptool.engine.codec import encode_sparse, joined

        one = self._restorations[name]
        marks = joined([part for _, part in sorted(seen.parts.items())])
        found = []
        step = block_elements(one.row.dtype if one.row is not None else one.base.dtype)
        for first in range(0, one.base.elements, step):
            stream = encode_sparse(marks.between(first, first + step))
            found.append((self._spill.append(stream), len(stream)))
        return found


class MergeWatch:
    """The outlet of a reversible merge: writes, and looks at what is rounded away."""

    def __init__(self, files: Outlet, recorder: Recorder) -> None:
        """Bytes go on to `files`."""
        self._files, self._recorder = files, recorder

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Write a tile."""
        self._files.fill(row, start, content)

    def copy(self, job: CopyJob) -> None:
        """Copy."""
        self._files.copy(job)

    def watch(
        self, row: Row, first: int, raw: torch.Tensor, out: torch.Tensor, stored: torch.Tensor
    ) -> None:
        """Mark what subtracting from `stored` would not give back."""
        if not self._recorder.wants(row):
            return
        import torch

        from adaptool.engine.bits import FORMATS, float_values
        from adaptool.engine.codec import mark, suspects

        form = FORMATS[row.dtype.name]
        exact = out.reshape(-1).cpu().numpy()
        merged = stored.reshape(-1).view(torch.uint8).numpy().view(form.pattern)
        true = raw.numpy().view(form.pattern)
        where = suspects(true, merged, exact, form)
        ours, theirs = true[where], merged[where]
        values = float_values(ours, form) + (float_values(theirs, form) - exact[where])
        marks = mark(ours, theirs, values, form)
        self._recorder.take(row.name, first, len(merged), marks.spread(where + first))


class SubtractionWatch:
    """The outlet of a run that subtracts: only looks."""

    def __init__(self, recorder: Recorder, bases: Mapping[str, TensorRef]) -> None:
        """`bases` are the true tensors by the name of their row."""
        self._recorder, self._bases = recorder, bases

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Nothing is written."""

    def copy(self, job: CopyJob) -> None:
        """Nothing is written."""

    def watch(
        self, row: Row, first: int, raw: torch.Tensor, out: torch.Tensor, stored: torch.Tensor
    ) -> None:
        """Mark where `out` does not round to the base's bits."""
        import numpy as np

        from adaptool.engine.bits import FORMATS
        from adaptool.engine.codec import mark

        del stored
        form = FORMATS[row.dtype.name]
        values = out.reshape(-1).cpu().numpy()
        count = len(values)
        true = _bits_at(self._bases[row.name], first, count, form)
        theirs = FORMATS[row.source.dtype.name]
        marks = mark(true, raw.numpy().view(theirs.pattern), values, form, theirs)
        self._recorder.take(row.name, first, count, marks.spread(np.arange(first, first + count)))


def _bits_at(ref: TensorRef, first: int, count: int, form: Format) -> Array:
    """Bits of elements [first, first + count)."""
    import numpy as np

    width = ref.dtype.bits // 8
    raw = content(ref, (first * width, (first + count) * width))
    return np.frombuffer(raw, form.pattern)
