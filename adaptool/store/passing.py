"""A directory that is there for a while."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from adaptool.errors import OutputError
from adaptool.findings import Code
from adaptool.store.disk import Disk, amount
from adaptool.store.preflight import SPARE_BYTES
from adaptool.store.safe_names import printable


def passing_directory(stack: ExitStack, name: str) -> Path:
    """An empty directory called `name`, in the machine's place for such; removed with `stack`.

    OutputError (exit 5) where none can be made.
    """
    try:
        # A thread that was broken off may still put something there: that is no error of the run.
        room = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="adaptool-", ignore_cleanup_errors=True)
        )
        inner = Path(room, name)
        inner.mkdir()
    except OSError as error:
        message = f"no temporary directory can be made: {os.strerror(error.errno or 0)}"
        file = printable(tempfile.gettempdir())
        hint = "set TMPDIR to a directory with room"
        raise OutputError(message, code=Code.WRITE_FAILED, file=file, hint=hint) from error
    return inner


def put_document(disk: Disk, path: Path, content: bytes) -> None:
    """A new file of these bytes."""
    file = disk.open_or_create(path)
    try:
        disk.write_all(file, memoryview(content), 0)
    finally:
        disk.close(file)


def put_hollow(disk: Disk, path: Path, size: int) -> None:
    """A file of `size` zeros that takes no room: it stands for one that lies elsewhere."""
    file = disk.open_or_create(path)
    try:
        disk.truncate(file, size)
    finally:
        disk.close(file)


def put_away(disk: Disk, path: Path) -> None:
    """Remove a file that passed; one that is gone is fine."""
    disk.unlink(path)


def check_passing_room(need_bytes: int, disk: Disk, what: str) -> None:
    """OutputError (exit 5) where `what`, `need_bytes` large, has no room in a passing directory."""
    folder = Path(tempfile.gettempdir())
    need, free = need_bytes + SPARE_BYTES, disk.free_space(folder)
    if need > free:
        message = f"{what} need {amount(need)} ({need} bytes), {amount(free)} are free"
        hint = f"set TMPDIR to a directory with {amount(need)}"
        file = printable(str(folder))
        raise OutputError(message, code=Code.DISK_FULL, file=file, hint=hint)
