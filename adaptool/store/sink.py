"""Where bytes are written to: the counterpart of Source."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from adaptool.errors import AdaptoolError, InternalError, OutputError
from adaptool.findings import Code
from adaptool.store.disk import Disk, OpenFile
from adaptool.store.safe_names import printable
from adaptool.store.source import Source

COPY_BLOCK = 4 << 20  # bytes through memory at a time
PATCH_BLOCK = 1 << 20  # bytes compared, and written again where they differ
# Bytes per call into the kernel, so that a signal is answered soon.
KERNEL_COPY_BLOCK = 128 << 20


class Sink(Protocol):
    """A run of bytes of known size that is filled at any place in any order, by any thread."""

    @property
    def name(self) -> str:
        """The file's name in the output, with forward slashes."""
        ...

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

    def copy_from(self, source: Source, source_offset: int, offset: int, length: int) -> None:
        """Place `length` bytes of `source`, from `source_offset`, at `offset`."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what lies at `offset`."""
        ...

    def finish(self) -> None:
        """Make what was placed durable; nothing is placed afterwards."""
        ...


@runtime_checkable
class HasDescriptor(Protocol):
    """A source that the kernel can copy from."""

    @property
    def fd(self) -> int:
        """An open file descriptor."""
        ...


class FileSink:
    """A file in a staging directory, preallocated.

    A file that an earlier run left is patched: what is placed is compared with what lies there,
    and written only where it differs, so its content is right whatever state it was left in. All
    methods raise OutputError where the disk fails; placing is safe from several threads.
    """

    __slots__ = ("_broken", "_disk", "_file", "_open", "_placed", "name", "resumed", "size")

    def __init__(self, disk: Disk, file: OpenFile, name: str, size: int) -> None:
        self._disk = disk
        self._file = file
        self._open = True
        self._broken = False
        self._placed = False
        self.name = name
        self.size = size
        self.resumed = not file.created and os.fstat(file.fd).st_size > 0

    @classmethod
    def open(cls, disk: Disk, path: Path, name: str, size: int) -> Self:
        """Create the file at `path`, or take up the one there, and reserve `size` bytes."""
        file = disk.open_or_create(path)
        if not file.created and os.fstat(file.fd).st_nlink > 1:
            disk.close(file)  # writing into it would change a file somewhere else
            disk.unlink(path)
            file = disk.open_or_create(path)
        sink = cls(disk, file, name, size)
        with ExitStack() as undo:
            undo.callback(sink.abandon)
            sink._reserve()
            undo.pop_all()
        return sink

    @property
    def finished(self) -> bool:
        """Whether all that was placed is durable."""
        return not self._open and not self._broken

    @property
    def holds_work(self) -> bool:
        """Whether this run or an earlier one has placed anything."""
        return self._placed or self.resumed

    def write(self, offset: int, chunk: memoryview) -> None:
        """Place `chunk` at `offset`."""
        view = chunk.cast("B")
        self._check_seat(offset, view.nbytes)
        self._placed = True
        if self.resumed:
            self._patch(offset, view)
        else:
            self._place(offset, view)

    def copy_from(self, source: Source, source_offset: int, offset: int, length: int) -> None:
        """Place `length` bytes of `source`, in the kernel where that is possible.

        Errors of reading are the source's own.
        """
        self._check_seat(offset, length)
        self._placed = True
        copied = 0
        if isinstance(source, HasDescriptor) and not self.resumed:
            copied = self._copy_in_kernel(source.fd, source_offset, offset, length)
        buffer = memoryview(bytearray(min(COPY_BLOCK, length - copied)))
        while copied < length:
            block = buffer[: length - copied]
            source.read_into(source_offset + copied, block)
            self.write(offset + copied, block)
            copied += block.nbytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what lies at `offset`."""
        view = buffer.cast("B")
        self._check_seat(offset, view.nbytes)
        while view.nbytes:
            count = self._read_some(offset, view)
            if count == 0:
                raise self._read_error(errno.ENODATA)
            view = view[count:]
            offset += count

    def finish(self) -> None:
        """Flush to the device and close; finishing again does nothing."""
        if not self._open:
            return
        try:
            self._disk.fsync(self._file)
            self._close()
        except AdaptoolError:
            self._broken = True
            raise

    def abandon(self) -> None:
        """Close without a promise.

        After a failed write the file is removed: the kernel may hold pages that look written and
        never will be, so a later run must not compare with them.
        """
        with suppress(AdaptoolError):
            if self._open:
                self._close()
        with suppress(AdaptoolError):
            if self._broken:
                self._disk.unlink(self._file.path)

    def _reserve(self) -> None:
        try:
            if os.fstat(self._file.fd).st_size > self.size:
                self._disk.truncate(self._file, self.size)
            if self.size:
                self._disk.preallocate(self._file, self.size)
        except AdaptoolError:
            self._broken = not self.resumed  # nothing is lost, and the space is given back
            raise

    def _place(self, offset: int, view: memoryview) -> None:
        try:
            self._disk.write_all(self._file, view, offset)
        except OutputError as error:
            self._broken |= error.code is Code.WRITE_FAILED
            raise

    def _patch(self, offset: int, view: memoryview) -> None:
        for start in range(0, view.nbytes, PATCH_BLOCK):
            block = view[start : start + PATCH_BLOCK]
            there = bytearray(block.nbytes)
            self.read_into(offset + start, memoryview(there))
            if there != block:  # a bytearray on the left compares as memcmp does
                self._place(offset + start, block)

    def _copy_in_kernel(self, fd: int, start: int, offset: int, length: int) -> int:
        """Bytes copied before the kernel could not go on."""
        copied = 0
        while copied < length:
            most = min(KERNEL_COPY_BLOCK, length - copied)
            try:
                count = self._disk.copy_range(fd, start + copied, self._file, offset + copied, most)
            except OutputError as error:
                self._broken |= error.code is Code.WRITE_FAILED
                raise
            if count == 0:
                break
            copied += count
        return copied

    def _read_some(self, offset: int, view: memoryview) -> int:
        try:
            part = os.pread(self._file.fd, view.nbytes, offset)
        except OSError as error:
            raise self._read_error(error.errno or 0) from error
        view[: len(part)] = part
        return len(part)

    def _read_error(self, number: int) -> OutputError:
        self._broken = True
        message = f"reading back what was written failed: {os.strerror(number)}"
        file = printable(str(self._file.path))
        hint = "check the disk and its log, and re-run the same command"
        return OutputError(message, code=Code.READ_FAILED, file=file, hint=hint)

    def _check_seat(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            message = f"{length} bytes at offset {offset} do not fit into {self.size} planned bytes"
            raise InternalError(message, code=Code.INTERNAL, file=self.name)
        if not self._open:
            message = "written to after it was finished"
            raise InternalError(message, code=Code.INTERNAL, file=self.name)

    def _close(self) -> None:
        self._open = False
        self._disk.close(self._file)
