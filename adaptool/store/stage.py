"""Where an output is put together before it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from adaptool.findings import Finding
from adaptool.store.sink import FileSink


class Stage(Protocol):
    """One output on its way: beside its destination on a disk, or to be sent elsewhere."""

    @property
    def hands_over(self) -> bool:
        """Whether a finished file leaves: its room is then free for the next one."""
        ...

    @property
    def folder(self) -> Path:
        """A directory for working files, on the disk that the output's files lie on."""
        ...

    @property
    def payload(self) -> Path:
        """The directory that holds the output's files until they leave."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What there is to say of the destination."""
        ...

    def sink(self, name: str, size: int) -> FileSink:
        """The file `name` (relative, forward slashes) of the output, `size` bytes."""
        ...

    def finished(self, sink: FileSink) -> None:
        """The file has all its bytes: make it durable, or hand it over."""
        ...

    def break_off(self) -> None:
        """There will be no commit: what is being handed over in another thread may end."""
        ...

    def digest(self, name: str) -> str:
        """sha256 of a finished file, in hexadecimal."""
        ...

    def commit(self) -> None:
        """Publish all of it."""
        ...
