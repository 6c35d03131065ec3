"""What a run does besides filling seats: it sees the tiles, and adds files of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from adaptool.engine.outlets import FileOutlet, Outlet
from adaptool.model.receipt import OutputEntry
from adaptool.store.sink import Sink
from adaptool.store.stage import Stage


class Besides(Protocol):
    """A companion of one run."""

    def outlet(self, files: FileOutlet, sinks: Mapping[str, Sink], folder: Path) -> Outlet:
        """What takes the engine's tiles and hands the bytes on to `files`, which fill `sinks`.

        `folder` is on the output's disk, for working files.
        """
        ...

    def finish(self, stage: Stage) -> Sequence[OutputEntry]:
        """All seats are filled: write further files."""
        ...

    def close(self) -> None:
        """The run is over, well or not."""
        ...
