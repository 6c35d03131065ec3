"""One remote file into one sink, checked against the digest that the commit gives it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

from adaptool.errors import InputError, IntegrityError
from adaptool.findings import Code
from adaptool.remote.failures import cut_short
from adaptool.remote.hub import Origin, RemoteFile, stream
from adaptool.store.digest import git_digest
from adaptool.store.local import LocalSource

Count = Callable[[int], None]
_BLOCK = 1 << 20


class Bytes(Protocol):
    """What a file is received into: the part of a Sink that is needed."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def resumed(self) -> bool:
        """Whether an earlier run that did not finish left bytes here."""
        ...

    def write(self, offset: int, chunk: memoryview) -> None:
        """Place `chunk` at `offset`."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what lies at `offset`."""
        ...


class _Intake:
    """Bytes in order, into the sink and through the digests."""

    __slots__ = ("_count", "_file", "_git", "_origin", "_sha256", "_sink", "position")

    def __init__(self, origin: Origin, file: RemoteFile, sink: Bytes, count: Count) -> None:
        self._origin, self._file, self._sink, self._count = origin, file, sink, count
        self.position = 0
        self.restart()

    def restart(self) -> None:
        """Begin again at the first byte."""
        self._count(-self.position)
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._git = git_digest(self._file.size)

    def take(self, chunk: bytes | memoryview, *, write: bool = True) -> None:
        """The next bytes; IntegrityError where there are more than the commit says."""
        if self.position + len(chunk) > self._file.size:
            self.refuse(f"is longer than the {self._file.size} bytes that the commit names")
        if write:
            self._sink.write(self.position, memoryview(chunk))
        self._sha256.update(chunk)
        if self._file.sha256 is None:
            self._git.update(chunk)
        self.position += len(chunk)
        self._count(len(chunk))

    @property
    def sha256(self) -> str:
        """Of what was taken, in hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def matches(self) -> bool:
        """Whether it is the file that the commit means, byte for byte."""
        if self._file.sha256 is not None:
            return self.sha256 == self._file.sha256
        return self._git.hexdigest() == self._file.oid

    def check(self) -> None:
        """IntegrityError where it is another file."""
        if self.matches:
            return
        if self._file.sha256 is not None:
            self.refuse(f"has sha256 {self.sha256}, expected {self._file.sha256}")
        self.refuse(f"has git object id {self._git.hexdigest()}, expected {self._file.oid}")

    def refuse(self, what: str) -> NoReturn:
        """Always raises."""
        file = self._origin.file(self._file.path)
        hint = "the bytes changed on their way: pull again, and see what stands in between"
        raise IntegrityError(what, code=Code.INTEGRITY, file=file, hint=hint)


def fetch(origin: Origin, file: RemoteFile, sink: Bytes, count: Count) -> str:
    """Fill the sink with the file; its sha256 in hexadecimal.

    What an earlier run left in the sink is taken up, what the client's cache holds is copied; both
    count for nothing unless the digest is right. IntegrityError (exit 9) where it is not, and for
    more bytes than the commit says; RemoteError (exit 6) for fewer.
    `count` is told the bytes done, negative where they must be done again.
    """
    intake = _Intake(origin, file, sink, count)
    if _from_cache(origin, file, intake):
        return intake.sha256
    if sink.resumed:
        intake.restart()
        _take_up(intake, sink)
        if intake.position == file.size and intake.matches:
            return intake.sha256
    resumed = 0 < intake.position < file.size
    if not resumed:
        intake.restart()
    _download(origin, file, intake)
    if resumed and not intake.matches:  # what was left was not what had been received
        intake.restart()
        _download(origin, file, intake)
    intake.check()
    return intake.sha256


def fetch_document(origin: Origin, file: RemoteFile, *, limit_bytes: int) -> bytes:
    """A small file as bytes; InputError where it is larger than `limit_bytes`."""
    if file.size > limit_bytes:
        message = f"has {file.size} bytes, more than {limit_bytes} is no document"
        raise InputError(message, code=Code.JSON_TOO_LARGE, file=origin.file(file.path))
    sink = _MemorySink(file.path, file.size)
    fetch(origin, file, sink, lambda _: None)
    return bytes(sink.content)


class _MemorySink:
    """A sink that keeps its bytes."""

    __slots__ = ("content", "name", "resumed", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size, self.resumed = name, size, False
        self.content = bytearray(size)

    def write(self, offset: int, chunk: memoryview) -> None:
        """Place `chunk` at `offset`."""
        self.content[offset : offset + chunk.nbytes] = chunk

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what lies at `offset`."""
        buffer[:] = self.content[offset : offset + buffer.nbytes]


def _download(origin: Origin, file: RemoteFile, intake: _Intake) -> None:
    start = intake.position
    for offset, chunk in stream(origin, file.path, start):
        if offset != intake.position:  # the server began again
            intake.restart()
        intake.take(chunk)
    if intake.position < file.size:
        raise cut_short(origin.file(file.path), intake.position, file.size)


def _take_up(intake: _Intake, sink: Bytes) -> None:
    """Digest what lies in the sink, up to its last byte that is not zero.

    A file is reserved whole and filled in order, so what was not received is zeros.
    """
    end = _end(sink)
    buffer = memoryview(bytearray(_BLOCK))
    while intake.position < end:
        view = buffer[: min(_BLOCK, end - intake.position)]
        sink.read_into(intake.position, view)
        intake.take(view, write=False)


def _end(sink: Bytes) -> int:
    """The number of bytes up to the last one that is not zero."""
    for start in reversed(range(0, sink.size, _BLOCK)):
        block = bytearray(min(_BLOCK, sink.size - start))
        sink.read_into(start, memoryview(block))
        kept = block.rstrip(b"\0")
        if kept:
            return start + len(kept)
    return 0


def in_cache(origin: Origin, file: RemoteFile) -> Path | None:
    """Where the client's cache holds the file, its size at least; what it holds is not read."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(origin.repo, file.path, revision=origin.commit)
    if not isinstance(found, str):
        return None
    path = Path(found)
    return path if path.is_file() and path.stat().st_size == file.size else None


def _from_cache(origin: Origin, file: RemoteFile, intake: _Intake) -> bool:
    """Whether the client's cache held the file, and it was the right one."""
    path = in_cache(origin, file)
    if path is None:
        return False
    with LocalSource(path) as source:
        if source.size != file.size:
            return False
        while intake.position < source.size:
            length = min(_BLOCK, source.size - intake.position)
            intake.take(source.read(intake.position, length))
    return intake.matches
