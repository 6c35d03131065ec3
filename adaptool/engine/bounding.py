"""How far a subtraction can be from the base, where the merge kept nothing.

M is W + d rounded, so the true W lies in v - h .. v + h with v = M - d, and h half a step at M.
Rounding keeps order: W, a number of the dtype, lies between what v - h and what v + h round to.
Counted in steps from what v rounds to, the farther of the two is the most that the result can be
away from W. The largest over all elements is the bound; it is large where W nearly cancels.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptool.engine.outlets import FileOutlet, Outlet, Tile
from adaptool.engine.tiles import CopyJob
from adaptool.model.plan import Row
from adaptool.model.receipt import OutputEntry
from adaptool.store.sink import Sink
from adaptool.store.stage import Stage


class Bounding:
    """What a numeric unmerge does besides: finds the largest possible error.

    `bound` in steps of the dtype; None where a tensor's dtype has no such analysis.
    """

    def __init__(self) -> None:
        self.bound: int | None = 0
        self._lock = threading.Lock()

    def outlet(self, files: FileOutlet, sinks: Mapping[str, Sink], folder: Path) -> Outlet:
        """The files, with an eye on the tiles."""
        del sinks, folder
        return _BoundingOutlet(files, self)

    def finish(self, stage: Stage) -> Sequence[OutputEntry]:
        """No further files."""
        del stage
        return ()

    def close(self) -> None:
        """Nothing is open."""

    def take(self, steps: int | None) -> None:
        """The largest error of one tile."""
        with self._lock:
            unknown = self.bound is None or steps is None
            self.bound = None if unknown else max(self.bound or 0, steps or 0)


class _BoundingOutlet:
    def __init__(self, files: Outlet, bounding: Bounding) -> None:
        self._files, self._bounding = files, bounding

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Write a tile."""
        self._files.fill(row, start, content)

    def copy(self, job: CopyJob) -> None:
        """Copy."""
        self._files.copy(job)

    def watch(self, row: Row, tile: Tile) -> None:
        """Take in a tile."""
        from adaptool.engine.bits import FORMATS, float_values, most_steps

        form = FORMATS.get(row.dtype.name)
        if form is None or row.source.dtype != row.dtype:
            self._bounding.take(None)
            return
        merged = float_values(tile.raw.numpy().view(form.pattern), form)
        self._bounding.take(most_steps(merged, tile.out.reshape(-1).cpu().numpy(), form))
