"""Local files as sources, read with `preadv`.

Never mapped: a file that another process truncates under a mapping kills the reader with SIGBUS.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Self

from adaptool.errors import (
    AdaptoolError,
    InputError,
    IntegrityError,
    OutputError,
    ResourceError,
    UsageError,
)
from adaptool.findings import Code
from adaptool.store.safe_names import printable

MOST_NAMES_COMPARED = 10_000
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_OUT_OF_HANDLES = frozenset({errno.EMFILE, errno.ENFILE})
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class LocalSource:
    """A regular file, open for reading; it remembers what it was when it was opened.

    Errors of opening: UsageError where nothing lies there or it is a directory, InputError for
    pipes, sockets and devices, OutputError where permission or a symlink is in the way.
    """

    __slots__ = ("_identity", "fd", "name", "path", "size")

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = printable(str(path)) if name is None else name
        self.fd = _open_regular(path, self.name)
        status = os.fstat(self.fd)
        self.size = status.st_size
        self._identity = _identity(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; errors as `read_into`."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` (bytes).

        IntegrityError where the file ends before; OutputError where the device fails.
        """
        rest = buffer.cast("B")
        while rest.nbytes:
            count = self._read_some(offset, rest)
            if count == 0:
                self._refuse_short(offset, rest.nbytes)
            rest = rest[count:]
            offset += count

    def advise(self, offset: int, length: int) -> None:
        """Tell the kernel that these bytes are read soon, where it can be told."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """IntegrityError where the file was modified, replaced or removed since it was opened."""
        try:
            here, there = os.fstat(self.fd), os.stat(self.path)
        except FileNotFoundError:
            self._refuse_changed("it was removed")
        except OSError as error:
            raise unreadable(error, self.path, self.name) from error
        if here.st_size != self.size:
            self._refuse_changed(f"it had {self.size} bytes and has {here.st_size}")
        if _identity(here) != self._identity:
            self._refuse_changed("its modification time is another")
        if _identity(there) != self._identity:
            self._refuse_changed("another file took its place")

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self.fd, [buffer], offset)
            part = os.pread(self.fd, buffer.nbytes, offset)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            message = f"reading {buffer.nbytes} bytes at offset {offset} failed: {reason}"
            hint = "check the disk and its log; copy the file elsewhere and try again"
            raise OutputError(
                message, code=Code.READ_FAILED, file=self.name, hint=hint, retryable=True
            ) from error
        buffer[: len(part)] = part
        return len(part)

    def _refuse_short(self, offset: int, missing: int) -> None:
        size = os.fstat(self.fd).st_size
        self._refuse_changed(
            f"{missing} bytes are missing at offset {offset}; it had {self.size} bytes "
            f"and has {size}"
        )

    def _refuse_changed(self, how: str) -> None:
        message = f"changed while it was read: {how}"
        hint = "let whatever writes this file finish, then run the command again"
        raise IntegrityError(message, code=Code.FILE_CHANGED, file=self.name, hint=hint)


def unreadable(error: OSError, path: Path, name: str) -> AdaptoolError:
    """The error that says why `path` could not be opened or listed."""
    if error.errno in _ABSENT and not os.path.islink(path):
        return _missing(path, name)
    if error.errno in _OUT_OF_HANDLES:
        message = f"cannot be opened: {os.strerror(error.errno or 0)}"
        hint = "raise the limit on open files (ulimit -n)"
        return ResourceError(message, code=Code.LIMIT_EXCEEDED, file=name, hint=hint)
    if error.errno in _ABSENT:
        reason, hint = f"is a symlink to {_target(path)}, which is missing", "download it again"
    elif error.errno == errno.ELOOP:
        reason, hint = "is a loop of symlinks", "replace the link by the file"
    else:
        reason = f"cannot be read: {os.strerror(error.errno or 0)}"
        hint = "check its permissions"
    return OutputError(reason, code=Code.NOT_READABLE, file=name, hint=hint)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _open_regular(path: Path, name: str) -> int:
    """A descriptor of the regular file at `path`; never blocks, never opens a device."""
    try:
        _refuse_irregular(os.stat(path).st_mode, name)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(error, path, name) from error
    except ValueError as error:  # a NUL in the path
        raise _missing(path, name) from error
    try:
        _refuse_irregular(os.fstat(fd).st_mode, name)
    except AdaptoolError:
        os.close(fd)
        raise
    return fd


def _refuse_irregular(mode: int, name: str) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        message = "is a directory; a file is needed"
        raise UsageError(message, code=Code.NOT_REGULAR_FILE, file=name)
    kind = next((word for test, word in _KINDS if test(mode)), "something else")
    message = f"is {kind}, not a regular file"
    hint = "write the bytes to a file first"
    raise InputError(message, code=Code.NOT_REGULAR_FILE, file=name, hint=hint)


def _missing(path: Path, name: str) -> UsageError:
    """Nothing lies at `path`: name the nearest neighbours, or the parent that is missing."""
    if "\0" not in str(path) and not os.path.isdir(path.parent):
        message = f"no such file or directory; {printable(str(path.parent))} is no directory"
        return UsageError(message, code=Code.NOT_FOUND, file=name)
    near = _nearest(path)
    hint = f"did you mean {' or '.join(near)}?" if near else None
    return UsageError("no such file or directory", code=Code.NOT_FOUND, file=name, hint=hint)


def _nearest(path: Path) -> list[str]:
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, MOST_NAMES_COMPARED)]
    except (OSError, ValueError):
        return []
    return [printable(near) for near in get_close_matches(path.name, names, n=3)]


def _target(path: Path) -> str:
    try:
        return printable(str(path.readlink()))
    except OSError:
        return "nowhere"
