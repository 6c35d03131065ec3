"""A disk that fails on purpose, for fault campaigns at any level.

    disk = FaultyDisk(FaultPlan(at=17, fault=Fault.KILL))
    try:
        job(disk)
    except Killed:
        ...
    finally:
        disk.bury()

`KILL` is a kill as the file system sees it: from the n-th operation on nothing has any effect, not
even what cleanup code tries, and `bury` lets go of descriptors and locks as the kernel would. It
needs no process, so it works where threads run. `EXIT` really ends the process: fork first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, TypeVar

from adaptool.store.disk import Disk, OpenFile

Result = TypeVar("Result")

EXIT_STATUS = 137
# What changes nothing, and what a thread does by the clock: renewing the claim of an output.
UNCOUNTED = frozenset({"statvfs", "touch"})
_TAKES_SPACE = frozenset({"mkdir", "preallocate", "pwrite", "copy_range"})
_WRITES = {"preallocate": 0, "truncate": 0, "pwrite": 0, "copy_range": 2}


class Fault(Enum):
    """What happens at the chosen operation."""

    KILL = auto()
    EXIT = auto()
    POWER_CUT = auto()  # a kill, after which files not flushed since they were written are zeros
    CTRL_C = auto()
    NO_SPACE = auto()
    STAYS_FULL = auto()  # no space from here on
    IO_ERROR = auto()
    SHORT = auto()  # a write or copy does half of what it could
    RETRY = auto()  # EINTR


@dataclass(frozen=True)
class FaultPlan:
    """Let `fault` happen at the `at`-th operation, counted from 0."""

    at: int
    fault: Fault


class Killed(BaseException):
    """The process would be gone by now."""


class FaultyDisk(Disk):
    """A disk with a plan.

    `lacking` maps operations that the file system does not offer to what it answers; `mounted` is
    taken for a mount point; `flushes` False makes fsync a lie. Nothing is really flushed: only
    `POWER_CUT` would show it, and that is simulated. `operations` is what happened so far.
    """

    __slots__ = (
        "_dirty",
        "_handles",
        "_over",
        "flushes",
        "lacking",
        "mounted",
        "operations",
        "plan",
    )

    def __init__(
        self,
        plan: FaultPlan | None = None,
        *,
        lacking: Mapping[str, object] | None = None,
        mounted: Path | None = None,
        flushes: bool = True,
    ) -> None:
        self.plan = plan
        self.lacking = dict(lacking or {})
        self.mounted = mounted
        self.flushes = flushes
        self.operations: list[str] = []
        self._over = False
        self._handles: set[int] = set()
        self._dirty: dict[int, int] = {}  # inode -> a descriptor of our own

    def perform(self, operation: str, call: Callable[..., Result], *arguments: Any) -> Any:
        """Count, perhaps fail, else do it."""
        if operation in UNCOUNTED:
            return call(*arguments)
        if self._over:
            raise Killed
        number = len(self.operations)
        self.operations.append(operation)
        if self.plan is not None and number >= self.plan.at:
            arguments = self._strike(self.plan, number, operation, call, arguments)
        return self._do(operation, call, arguments)

    def is_mount_point(self, path: Path) -> bool:
        """Whether it is the one path that is taken for a mount point."""
        return path == self.mounted

    def bury(self) -> None:
        """Close what the run left open."""
        for fd in [*self._handles, *self._dirty.values()]:
            with suppress(OSError):
                os.close(fd)
        self._handles.clear()
        self._dirty.clear()

    def _strike(
        self,
        plan: FaultPlan,
        number: int,
        operation: str,
        call: Callable[..., object],
        arguments: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        if plan.fault is Fault.STAYS_FULL and _needs_space(operation, arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number != plan.at or plan.fault is Fault.STAYS_FULL:
            return arguments
        if plan.fault is Fault.SHORT:
            return _halved(operation, arguments)
        if plan.fault is Fault.EXIT:
            os._exit(EXIT_STATUS)
        if plan.fault is Fault.CTRL_C:
            raise KeyboardInterrupt
        if plan.fault in {Fault.KILL, Fault.POWER_CUT}:
            self._over = True
            if plan.fault is Fault.POWER_CUT:
                self._lose_what_was_not_flushed()
            raise Killed
        if operation == "close" and plan.fault is not Fault.RETRY:
            self._do(operation, call, arguments)  # a failed close has closed
        number = {Fault.NO_SPACE: errno.ENOSPC, Fault.RETRY: errno.EINTR}.get(plan.fault, errno.EIO)
        raise OSError(number, os.strerror(number))

    def _do(self, operation: str, call: Callable[..., object], arguments: tuple[Any, ...]) -> Any:
        if operation in self.lacking:
            return self.lacking[operation]
        if operation == "close":
            self._handles.discard(arguments[0])
        if operation in _WRITES:
            self._soil(arguments[_WRITES[operation]])
        if operation == "fsync" and self.flushes:
            self._clean(arguments[0])
        if operation in {"fsync", "fsync_directory"}:
            return None
        result = call(*arguments)
        if isinstance(result, OpenFile):
            self._handles.add(result.fd)
        return result

    def _soil(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        if inode not in self._dirty:
            self._dirty[inode] = os.dup(fd)

    def _clean(self, fd: int) -> None:
        own = self._dirty.pop(os.fstat(fd).st_ino, None)
        if own is not None:
            os.close(own)

    def _lose_what_was_not_flushed(self) -> None:
        for fd in self._dirty.values():
            size = os.fstat(fd).st_size
            os.pwrite(fd, bytes(size), 0)


def _needs_space(operation: str, arguments: tuple[Any, ...]) -> bool:
    if operation == "open":
        return not os.path.lexists(arguments[0])
    return operation in _TAKES_SPACE


def _halved(operation: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if operation == "pwrite":
        fd, chunk, offset = arguments
        return fd, chunk[: max(1, chunk.nbytes // 2)], offset
    if operation == "copy_range":
        *where, length = arguments
        return *where, max(1, length // 2)
    return arguments


class FailingDisk(Disk):
    """A disk on which every call of some operations fails with one errno."""

    __slots__ = ("number", "operations")

    def __init__(self, number: int, *operations: str) -> None:
        self.number = number
        self.operations = operations

    def perform(self, operation: str, call: Callable[..., Result], *arguments: object) -> Result:
        """Fail, or do it."""
        if operation in self.operations:
            if operation == "close":
                call(*arguments)
            raise OSError(self.number, os.strerror(self.number))
        return call(*arguments)
