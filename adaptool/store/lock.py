"""One run per output.

The lock file also outlives a run that was killed while it published, and then says what it was
about to publish: the same command, run again, can see that its work is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Self

from adaptool.errors import AdaptoolError, BusyError
from adaptool.findings import Code
from adaptool.store import claim as claims
from adaptool.store.claim import CLAIM_BYTES, Claim, claim_at, is_free, is_gone
from adaptool.store.disk import Disk, Flock, OpenFile
from adaptool.store.journal import encode_record, parse_record, read_regular, sizes
from adaptool.store.safe_names import printable


@dataclass(frozen=True, slots=True)
class Publication:
    """What a run is about to publish.

    `plan` is the plan's digest, `files` all files with their sizes in bytes, `mark` the digest of
    their names and fingerprints: inode numbers are no identity on every file system.
    """

    plan: str
    mark: str
    files: Mapping[str, int]


class OutputLock:
    """The lock of one output, held until `release`; a thread renews its claim."""

    __slots__ = ("_claim", "_disk", "_file", "_over", "publication")

    def __init__(
        self, disk: Disk, file: OpenFile, claim: Claim, publication: Publication | None
    ) -> None:
        self._disk = disk
        self._file = file
        self._claim = claim
        self._over = Event()
        self.publication = publication

    @classmethod
    def acquire(cls, path: Path, disk: Disk, plan: str = "") -> Self:
        """Take the lock at `path`; BusyError where another run holds it, or may hold it."""
        claim = Claim.of_this_process(plan)
        while True:
            file = disk.open_or_create(path)
            with ExitStack() as undo:
                undo.callback(disk.close, file)
                _take(file, disk)
                disk.write_all(file, memoryview(claim.encoded()), 0)
                # The run that held it may have removed the file that was opened here.
                if claim_at(path) == claim:
                    undo.pop_all()
                    lock = cls(disk, file, claim, read_publication(path))
                    lock._begin_renewing()
                    return lock

    @property
    def nonce(self) -> str:
        """What tells this hold of the output from every other."""
        return self._claim.nonce

    @property
    def is_held(self) -> bool:
        """Whether the output is still this run's: the file says so."""
        return claim_at(self._file.path) == self._claim

    def check(self) -> None:
        """BusyError where another run took the output over: it was right to, or locks failed."""
        if not self.is_held:
            raise _busy(self._file.path, "wait until it ends; nothing of this run is published")

    def record(self, publication: Publication | None) -> None:
        """Write what is about to be published; None for nothing. BusyError as `check`."""
        self.check()
        body = b"" if publication is None else encode_record(asdict(publication))
        self._disk.write_all(self._file, memoryview(body), CLAIM_BYTES)
        self._disk.truncate(self._file, CLAIM_BYTES + len(body))
        if publication is not None:  # before the rename that it announces
            self._disk.fsync(self._file)
        self.publication = publication

    def release(self, *, keep: bool = False) -> None:
        """Let go; the file goes too, unless it is to `keep` its record for the next run."""
        self._over.set()
        try:
            if not self.is_held:
                return
            if keep:
                self._disk.write_all(self._file, memoryview(self._claim.released()), 0)
            else:
                # While it is locked: whoever opened this file will see that it is gone.
                self._disk.unlink(self._file.path)
        finally:
            with suppress(AdaptoolError):  # the lock is let go all the same
                self._disk.close(self._file)

    def _begin_renewing(self) -> None:
        Thread(
            target=_renew,
            args=(self._claim, self._file.path, self._disk, self._over),
            name="claim",
            daemon=True,
        ).start()


def read_publication(path: Path) -> Publication | None:
    """What the lock file at `path` says about a publication, if anything."""
    record = parse_record(read_regular(path)[CLAIM_BYTES:]) or {}
    files = sizes(record.get("files"))
    plan, mark = record.get("plan"), record.get("mark")
    if files is not None and isinstance(plan, str) and isinstance(mark, str):
        return Publication(plan, mark, files)
    return None


def _renew(claim: Claim, path: Path, disk: Disk, over: Event) -> None:
    """Touch the lock file now and then, as long as it is this claim's."""
    while not over.wait(claims.RENEW_SECONDS) and claim_at(path) == claim:
        with suppress(AdaptoolError):  # the next time may succeed
            disk.touch(path)


def _take(file: OpenFile, disk: Disk) -> None:
    """BusyError unless the file is new, or whoever left it is provably gone."""
    outcome = disk.flock(file)
    if outcome is Flock.BUSY:
        raise _busy(file.path, "wait until it ends")
    if file.created or is_free(file.path):
        return
    locks_hold = outcome is Flock.TAKEN and disk.locks_hold(file)
    if not is_gone(claim_at(file.path), file.path, locks_hold=locks_hold):
        raise _busy(file.path, "wait until it ends; where none runs, delete this file")


def _busy(path: Path, hint: str) -> BusyError:
    found = claim_at(path)
    process = "another process"
    if found is not None:
        process = f"process {found.pid} " + ("" if found.is_here else f"on {found.host} ")
    return BusyError(
        f"{process.strip()} is writing this output",
        code=Code.OUTPUT_BUSY,
        file=printable(str(path)),
        hint=hint,
        retryable=True,
    )
