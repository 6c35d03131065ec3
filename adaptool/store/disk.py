"""The only place that changes the file system.

One thin method per operation, so that a test can let any of them fail, fall short or be the last
thing that happens. What goes wrong leaves here as one of adaptool's errors, naming the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TypeVar

from adaptool.errors import AdaptoolError, OutputError, ResourceError
from adaptool.findings import Code
from adaptool.store import kernel
from adaptool.store.safe_names import printable

Result = TypeVar("Result")

CONTINUE = "and re-run the same command: it continues where it stopped"
STAT_BLOCK = 512  # the unit of st_blocks, in bytes
_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_OUT_OF_HANDLES = frozenset({errno.EMFILE, errno.ENFILE})
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
# copy_file_range does not say which of the two files failed; a copy through memory does.
_NO_KERNEL_COPY = kernel.UNSUPPORTED | {errno.EIO, errno.EBADF, errno.ETXTBSY}


class Flock(Enum):
    """How asking for a lock ended."""

    TAKEN = auto()
    BUSY = auto()
    UNSUPPORTED = auto()


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file open for reading and writing; `created` where it did not exist before."""

    fd: int
    path: Path
    created: bool


class Disk:
    """The file system. Paths are not resolved; symlinks are never followed when opening."""

    __slots__ = ()

    def perform(self, operation: str, call: Callable[..., Result], *arguments: object) -> Result:
        """Make one call. Every change passes here: a faulty disk overrides this method."""
        del operation
        return call(*arguments)

    def mkdir(self, path: Path) -> None:
        """Make a directory (0777 without the umask); one that exists is fine."""
        self._run("mkdir", path, _make_directory, path)

    def open_or_create(self, path: Path) -> OpenFile:
        """Create a file (0666 without the umask) or open the one that is there."""
        return self._run("open", path, _open_or_create, path)

    def preallocate(self, file: OpenFile, size: int) -> None:
        """Reserve `size` bytes; where the file system cannot, only extend the file."""
        missing = size - os.fstat(file.fd).st_blocks * STAT_BLOCK
        short_by = missing - self.free_space(file.path.parent)
        # Not left to the kernel: it may hand out all there is before it refuses, and until that is
        # given back nobody on this disk can write.
        allocate = _refuse_space if short_by > 0 else _allocate
        self._run("preallocate", file.path, allocate, file.fd, size, short_by=short_by)

    def truncate(self, file: OpenFile, size: int) -> None:
        """Set the file's length."""
        self._run("truncate", file.path, os.ftruncate, file.fd, size)

    def pwrite(self, file: OpenFile, chunk: memoryview, offset: int) -> int:
        """Write some of `chunk` at `offset`; how many bytes it was."""
        return self._run("pwrite", file.path, os.pwrite, file.fd, chunk, offset)

    def write_all(self, file: OpenFile, chunk: memoryview, offset: int) -> None:
        """Write all of `chunk` (bytes) at `offset`, however many calls it takes."""
        while chunk.nbytes:
            written = self.pwrite(file, chunk, offset)
            if written == 0:
                failure = OSError(errno.EIO, "the file takes no more bytes")
                raise output_error(failure, file.path, "pwrite")
            chunk = chunk[written:]
            offset += written

    def copy_range(self, source: int, start: int, file: OpenFile, offset: int, length: int) -> int:
        """Copy in the kernel from descriptor `source`; bytes copied, 0 where it cannot."""
        arguments = (source, start, file.fd, offset, length)
        return self._run("copy_range", file.path, _copy_range, *arguments)

    def fsync(self, file: OpenFile) -> None:
        """Wait until the file's bytes are on the device. A failure must not be tried again."""
        self._run("fsync", file.path, _sync, file.fd)

    def fsync_directory(self, path: Path) -> None:
        """Wait until the names in the directory are on the device."""
        self._run("fsync_directory", path, _sync_directory, path)

    def rename(self, old: Path, new: Path) -> None:
        """Rename; replaces a file by a file, an empty directory by a directory."""
        self._run("rename", new, os.rename, old, new)

    def rename_new(self, old: Path, new: Path) -> bool:
        """Rename to a name that must be free; False where the file system cannot promise it."""
        return self._run("rename_new", new, _supported, kernel.rename_new, old, new)

    def exchange(self, one: Path, other: Path) -> bool:
        """Swap two names in one step; False where the file system cannot."""
        return self._run("exchange", other, _supported, kernel.exchange, one, other)

    def link(self, old: Path, new: Path) -> bool:
        """Give a file a second name, which must be free; False where the file system cannot."""
        return self._run("link", new, _supported, os.link, old, new)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone is fine."""
        self._run("unlink", path, _unlink, path)

    def rmtree(self, path: Path) -> None:
        """Remove a file or a directory with all it holds, or what is left of it.

        Follows no symlinks.
        """
        if not _is_directory(path):
            if os.path.lexists(path):
                self.unlink(path)
            return
        for child in self._run("list", path, _children, path):
            self.rmtree(child)
        self._run("rmdir", path, _remove_directory, path)

    def close(self, file: OpenFile) -> None:
        """Close; some file systems report a failed write only here."""
        self._run("close", file.path, _close, file.fd)

    def flock(self, file: OpenFile) -> Flock:
        """Ask for the exclusive lock of a file without waiting."""
        return self._run("flock", file.path, _lock, file.fd)

    def locks_hold(self, file: OpenFile) -> bool:
        """Whether the lock that was just taken keeps others of this machine out."""
        fd = _opened_again(file)
        if fd is None:
            return False
        try:
            return self.flock(OpenFile(fd, file.path, created=False)) is Flock.BUSY
        finally:
            os.close(fd)

    def touch(self, path: Path) -> None:
        """Set the time of a file's last change to now."""
        self._run("touch", path, os.utime, path)

    def free_space(self, path: Path) -> int:
        """Bytes that this user may still write into the file system of a directory."""
        return self._run("statvfs", path, _free_space, path)

    def writable(self, directory: Path) -> bool:
        """Whether names can be made in a directory."""
        effective = os.access in os.supports_effective_ids
        return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective)

    def is_mount_point(self, path: Path) -> bool:
        """Whether something is mounted there, bind mounts of the same file system included."""
        return os.path.ismount(path) or str(path) in _mount_points()

    def _run(
        self,
        operation: str,
        path: Path,
        call: Callable[..., Result],
        *arguments: object,
        short_by: int = 0,
    ) -> Result:
        while True:
            try:
                return self.perform(operation, call, *arguments)
            except InterruptedError:
                continue
            except OSError as failure:
                raise output_error(failure, path, operation, short_by=short_by) from failure


def output_error(
    failure: OSError, path: Path, operation: str, *, short_by: int = 0
) -> AdaptoolError:
    """The error that a failed operation on the output is; `short_by` bytes the disk lacks."""
    number, file = failure.errno or 0, printable(str(path))
    reason = os.strerror(number)
    if number in _OUT_OF_HANDLES:
        hint = "raise the limit on open files (ulimit -n)"
        return ResourceError(reason, code=Code.LIMIT_EXCEEDED, file=file, hint=hint)
    if number in _NO_SPACE:
        lacking = amount(short_by) if short_by > 0 else "some space"
        message, hint = _fullness(path, reason), f"free {lacking} {CONTINUE}"
        return OutputError(message, code=Code.DISK_FULL, file=file, hint=hint)
    if number in _NOT_WRITABLE:
        hint = "choose another place, or change its permissions"
        return OutputError(reason, code=Code.OUTPUT_NOT_WRITABLE, file=file, hint=hint)
    if number == errno.EFBIG:
        hint = "raise the limit (ulimit -f), use another file system, or --max-shard-size"
        return OutputError(reason, code=Code.FILE_TOO_LARGE, file=file, hint=hint)
    if number in _IN_THE_WAY:
        message, hint = f"{reason}: another program made it", "choose another name, or --overwrite"
        return OutputError(message, code=Code.OUTPUT_EXISTS, file=file, hint=hint)
    hint = f"check the disk and its log, {CONTINUE}"
    message = f"{operation} failed: {failure.strerror or reason}"
    return OutputError(message, code=Code.WRITE_FAILED, file=file, hint=hint)


def amount(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _fullness(path: Path, reason: str) -> str:
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return reason
    if room.f_files and not room.f_favail:
        return f"{reason}: no inodes are free"
    return f"{reason}: {amount(room.f_bavail * room.f_frsize)} are free"


def _supported(call: Callable[[Path, Path], None], old: Path, new: Path) -> bool:
    try:
        call(old, new)
    except OSError as failure:
        if failure.errno in kernel.UNSUPPORTED:
            return False
        raise
    return True


def _make_directory(path: Path) -> None:
    try:
        os.mkdir(path, 0o777)
    except FileExistsError:
        if not _is_directory(path):
            raise


def _open_or_create(path: Path) -> OpenFile:
    while True:  # until it neither appears nor vanishes in between
        try:
            fd = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            pass
        else:
            return OpenFile(fd, path, created=True)
        try:
            return OpenFile(os.open(path, _OPEN_FLAGS), path, created=False)
        except FileNotFoundError:
            continue


def _opened_again(file: OpenFile) -> int | None:
    """The same file once more, as another process would open it; None where that cannot be."""
    for path in (f"/proc/self/fd/{file.fd}", file.path):
        with suppress(OSError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    return None


def _allocate(fd: int, size: int) -> None:
    try:
        kernel.allocate(fd, size)
    except OSError as failure:
        if failure.errno not in kernel.UNSUPPORTED:
            raise
        os.ftruncate(fd, size)


def _refuse_space(fd: int, size: int) -> None:
    del fd, size
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy_range(source: int, start: int, fd: int, offset: int, length: int) -> int:
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, fd, length, start, offset)
    except OSError as failure:
        if failure.errno in _NO_KERNEL_COPY:
            return 0
        raise


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as failure:
        if failure.errno not in _NO_SYNC:
            raise


def _sync_directory(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # may be written to, not read: it cannot be asked
        return
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _children(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries)
    except FileNotFoundError:
        return []


def _remove_directory(path: Path) -> None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except InterruptedError:  # Linux has let go of the descriptor all the same
        return


def _lock(fd: int) -> Flock:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Flock.BUSY
    except OSError as failure:
        if failure.errno in _NO_LOCKS:
            return Flock.UNSUPPORTED
        raise
    return Flock.TAKEN


def _free_space(path: Path) -> int:
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def _mount_points() -> frozenset[str]:
    """Where things are mounted, from proc(5); empty where there is no /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return frozenset()
    fields = (line.split(b" ")[4] for line in lines if line.count(b" ") > 4)
    return frozenset(os.fsdecode(_unescaped(field)) for field in fields)


def _unescaped(field: bytes) -> bytes:
    """Undo the octal escapes of blank, tab, newline and backslash."""
    for octal, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(octal, byte)
    return field
