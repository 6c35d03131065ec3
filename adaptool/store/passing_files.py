"""Files that lie here only until they are sent."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Self

from adaptool.store.disk import Disk
from adaptool.store.safe_names import check_relative, printable
from adaptool.store.sink import FileSink


class PassingFiles:
    """The files of an output in a directory that goes away; a `with` block closes them.

    All methods are safe from several threads; OutputError (exit 5) where the disk fails.
    """

    __slots__ = ("_disk", "_lock", "_sinks", "folder")

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder
        self._disk = disk
        self._lock = Lock()
        self._sinks: dict[str, FileSink] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for sink in self._sinks.values():
            sink.abandon()

    def path(self, name: str) -> Path:
        """Where the file `name` lies."""
        return self.folder / name

    def sink(self, name: str, size: int) -> FileSink:
        """The file `name` (relative, forward slashes), `size` bytes, preallocated."""
        check_relative(name, file=printable(name), field="file name")
        with self._lock:
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                self._disk.mkdir(self.path(str(parent)))
            self._sinks[name] = FileSink.open(self._disk, self.path(name), name, size)
            return self._sinks[name]

    def drop(self, name: str) -> None:
        """Remove a finished file: its room is free again."""
        self._disk.unlink(self.path(name))
