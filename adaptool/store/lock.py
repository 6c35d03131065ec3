"""One run per output.

The lock file also outlives a run that was killed while it published, and then says what it was
about to publish: the same command, run again, can see that its work is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from adaptool.errors import AdaptoolError, BusyError
from adaptool.findings import Code
from adaptool.store.disk import Disk, Flock, OpenFile, identity
from adaptool.store.journal import encode_record, parse_record, read_regular, sizes
from adaptool.store.safe_names import printable

# The file's first line is the process that holds it, padded, so that writing it leaves the second
# line, the publication, alone.
_OWNER_BYTES = 21


@dataclass(frozen=True, slots=True)
class Publication:
    """What a run is about to publish.

    `plan` is the plan's digest, `files` all files with their sizes in bytes. `witness` is the file
    or directory (relative to what becomes OUT; empty for itself) that is renamed, `inode` its
    inode number, which a rename keeps.
    """

    plan: str
    witness: str
    inode: int
    files: Mapping[str, int]


class OutputLock:
    """The lock of one output, held until `release`."""

    __slots__ = ("_disk", "_file", "publication")

    def __init__(self, disk: Disk, file: OpenFile, publication: Publication | None) -> None:
        self._disk = disk
        self._file = file
        self.publication = publication

    @classmethod
    def acquire(cls, path: Path, disk: Disk) -> Self:
        """Take the lock at `path`; BusyError where another run holds it.

        Where the file system has no locks, that the file exists is the lock.
        """
        while True:
            file = disk.open_or_create(path)
            with ExitStack() as undo:
                undo.callback(disk.close, file)
                _take(file, disk)
                # The run that held it may have removed the file that was opened here.
                if os.fstat(file.fd).st_ino == identity(path):
                    owner = memoryview(f"{os.getpid():<{_OWNER_BYTES - 1}}\n".encode())
                    disk.write_all(file, owner, 0)
                    undo.pop_all()
                    return cls(disk, file, read_publication(path))

    def record(self, publication: Publication | None) -> None:
        """Write what is about to be published; None for nothing."""
        body = b"" if publication is None else encode_record(asdict(publication))
        self._disk.write_all(self._file, memoryview(body), _OWNER_BYTES)
        self._disk.truncate(self._file, _OWNER_BYTES + len(body))
        if publication is not None:  # before the rename that it announces
            self._disk.fsync(self._file)
        self.publication = publication

    def release(self, *, keep: bool = False) -> None:
        """Let go; the file goes too, unless it is to `keep` its record for the next run."""
        try:
            if not keep:
                # While it is locked: whoever opened this file will see that it is gone.
                self._disk.unlink(self._file.path)
        finally:
            with suppress(AdaptoolError):  # the lock is let go all the same
                self._disk.close(self._file)


def read_publication(path: Path) -> Publication | None:
    """What the lock file at `path` says about a publication, if anything."""
    record = parse_record(read_regular(path)[_OWNER_BYTES:]) or {}
    files = sizes(record.get("files"))
    plan, witness, inode = (record.get(key) for key in ("plan", "witness", "inode"))
    if files is None or type(inode) is not int:
        return None
    if isinstance(plan, str) and isinstance(witness, str):
        return Publication(plan, witness, inode, files)
    return None


def _take(file: OpenFile, disk: Disk) -> None:
    outcome = disk.flock(file)
    if outcome is Flock.BUSY:
        raise _busy(file.path, "wait until it ends")
    if outcome is Flock.UNSUPPORTED and not file.created:
        raise _busy(file.path, "wait until it ends; where none runs, delete this file")


def _busy(path: Path, hint: str) -> BusyError:
    owner = read_regular(path)[:_OWNER_BYTES].strip()
    process = f"process {int(owner)}" if owner.isdigit() else "another process"
    return BusyError(
        f"{process} is writing this output",
        code=Code.OUTPUT_BUSY,
        file=printable(str(path)),
        hint=hint,
        retryable=True,
    )
