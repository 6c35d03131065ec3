"""Where computed bytes go: into files, or into a comparison."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from adaptool.engine.tiles import CopyJob
from adaptool.model.plan import Row
from adaptool.store.sink import Sink

if TYPE_CHECKING:
    import torch


class Outlet(Protocol):
    """Takes what the engine makes, from several threads, each byte once."""

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Bytes of `row`'s tensor from byte `start` on."""
        ...

    def copy(self, job: CopyJob) -> None:
        """A run of bytes that is the source's own."""
        ...


@dataclass(frozen=True, slots=True)
class Tile:
    """Elements of a row from `first` on: as they were read, as computed, as they are stored.

    `raw` are the source's bytes (not those where the row has blends), `out` is in the arithmetic's
    dtype; `middles` are the places where `out` lies near the middle of two numbers of the row's
    dtype, None where nothing looked for them. `out` and `middles` are on the arithmetic's device,
    the others on the CPU.
    """

    first: int
    raw: torch.Tensor
    out: torch.Tensor
    stored: torch.Tensor
    middles: torch.Tensor | None


@runtime_checkable
class Watching(Outlet, Protocol):
    """An outlet that sees the values before they are rounded."""

    def watch(self, row: Row, tile: Tile) -> None:
        """A tile of `row`, valid until the call returns."""
        ...


class FileOutlet:
    """Writes into the staged files; a file is finished with its last byte."""

    def __init__(self, sinks: Mapping[str, Sink], finish: Callable[[str], None]) -> None:
        """`sinks` by file name; `finish` is called once with a file that has all its bytes."""
        self._sinks = sinks
        self._finish = finish
        self._missing: dict[str, int] = {}
        self._lock = threading.Lock()

    def expect(self, file: str, count: int) -> None:
        """`count` bytes will come for `file`."""
        self._missing[file] = count
        if not count:
            self._finish(file)

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Write a tile at its seat."""
        self._sinks[row.file].write(row.offset + start, content)
        self.count(row.file, len(content))

    def copy(self, job: CopyJob) -> None:
        """Copy in the kernel."""
        self._sinks[job.file].copy_from(job.source, job.source_offset, job.offset, job.length)
        self.count(job.file, job.length)

    def count(self, file: str, length: int) -> None:
        """`length` bytes of `file` are in their place."""
        with self._lock:
            self._missing[file] -= length
            done = not self._missing[file]
        if done:
            self._finish(file)
