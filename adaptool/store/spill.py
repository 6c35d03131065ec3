"""Bytes whose place in the output is not known yet, kept on its disk in an unnamed file."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import IO, Self

from adaptool.errors import InternalError, OutputError
from adaptool.findings import Code


class Spill:
    """A source that grows: several threads append, whoever knows the place reads.

    The file has no name, so nothing is left of it, whatever is killed; it is made when there is
    something to keep. OutputError where the disk fails.
    """

    __slots__ = ("_file", "_lock", "name", "size")

    def __init__(self, folder: Path) -> None:
        """On the disk of `folder`, which may be made later."""
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        self.name = str(folder)
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()

    def append(self, content: bytes) -> int:
        """Keep `content`; the offset it has."""
        view = memoryview(content)
        try:
            with self._lock:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self.name, buffering=0)  # noqa: SIM115
                start = place = self.size
                self.size += len(content)
            while view:
                count = os.pwrite(self._file.fileno(), view, place)
                view, place = view[count:], place + count
        except OSError as error:
            raise _failed(error, Path(self.name)) from error
        return start

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        count = 0
        try:
            if self._file is not None:
                count = os.preadv(self._file.fileno(), [buffer], offset)
        except OSError as error:
            raise _failed(error, Path(self.name)) from error
        if count != buffer.nbytes:
            message = f"{buffer.nbytes} bytes at {offset} were asked for, {count} are kept"
            raise InternalError(message, code=Code.INTERNAL, file=self.name)


def _failed(error: OSError, folder: Path) -> OutputError:
    hint = "free space on the disk of OUT, and re-run the same command"
    message = f"a working file failed: {error.strerror}"
    return OutputError(message, code=Code.WRITE_FAILED, file=str(folder), hint=hint)
