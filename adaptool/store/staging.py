"""Staging: an output is written beside its destination and published whole.

    with Staging.open(out, plan_digest, Disk(), overwrite=False) as staging:
        if not staging.published:
            sink = staging.sink("model.safetensors", size)
            ...
            staging.finished(sink)
            staging.put("adaptool.json", receipt)
        staging.commit()

Leaving the block without `commit`, OUT is as it was. What a full disk, a lost connection, a signal
or a kill interrupts stays staged, and the same plan takes it up again; any other error would come
back, so its staging directory is removed.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import NoReturn, Self

from adaptool.errors import (
    AdaptoolError,
    InternalError,
    Interrupted,
    OutputError,
    RemoteError,
    ResourceError,
)
from adaptool.findings import Code, Finding, Severity
from adaptool.store.digest import sha256_of
from adaptool.store.disk import Disk
from adaptool.store.journal import Journal, read_journal, write_journal
from adaptool.store.local import LocalSource
from adaptool.store.lock import OutputLock, Publication
from adaptool.store.occupied import (
    check_replaceable,
    files_under,
    holds,
    is_published,
    mark_of,
)
from adaptool.store.placement import Placement, place
from adaptool.store.publish import plan_moves, publish, settle, take_over, weaker_promise
from adaptool.store.safe_names import check_relative, printable
from adaptool.store.sink import FileSink

_RESUMABLE = (OutputError, Interrupted, ResourceError, RemoteError)


class Staging:
    """One output on its way; `open` makes it, a `with` block ends it.

    `published` says that an earlier run of this plan was killed after it had published: nothing
    is left to write, and `commit` only cleans up. `done` are the files (name to bytes) that an
    earlier run had finished. `sink`, `put` and `finished` are safe from several threads.
    """

    __slots__ = (
        "_committed",
        "_disk",
        "_lock",
        "_mutex",
        "_overwrite",
        "_plan",
        "_publishing",
        "_sinks",
        "done",
        "findings",
        "placement",
        "published",
    )

    def __init__(
        self, placement: Placement, plan: str, disk: Disk, lock: OutputLock, *, overwrite: bool
    ) -> None:
        self.placement = placement
        self.published = False
        self.done: dict[str, int] = {}
        self.findings: tuple[Finding, ...] = ()
        self._plan = plan
        self._disk = disk
        self._lock = lock
        self._overwrite = overwrite
        self._mutex = Lock()
        self._sinks: dict[str, FileSink] = {}
        self._publishing = False
        self._committed = False

    @classmethod
    def open(
        cls,
        out: Path,
        plan_digest: str,
        disk: Disk,
        *,
        overwrite: bool = False,
        single_file: bool = False,
    ) -> Self:
        """Lock OUT and prepare its staging directory, taking up what this plan left there.

        BusyError (exit 8) where another run holds OUT; OutputError (exit 5) where OUT may not be
        replaced or the disk fails.
        """
        placement = place(out, disk, single_file=single_file)
        lock = OutputLock.acquire(placement.lock, disk, plan_digest)
        with ExitStack() as undo:
            undo.callback(lock.release, keep=lock.publication is not None)
            mine = replace(placement, token=lock.nonce)
            staging = cls(mine, plan_digest, disk, lock, overwrite=overwrite)
            staging._prepare()
            undo.pop_all()
        return staging

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self._sinks.values():
            sink.abandon()
        with ExitStack() as cleanup:
            if error is not None:  # what went wrong first is what to report
                cleanup.enter_context(suppress(AdaptoolError))
            cleanup.callback(self._lock.release, keep=self._publishing and not self._committed)
            if not self._committed and not self._publishing and not self._is_resumable(error):
                self._remove()

    @property
    def hands_over(self) -> bool:
        """No: files stay until all of them are published."""
        return False

    @property
    def folder(self) -> Path:
        """The staging directory, for working files."""
        return self.placement.work

    @property
    def payload(self) -> Path:
        """The directory that becomes OUT."""
        return self.placement.payload

    def break_off(self) -> None:
        """Nothing is handed over."""

    def digest(self, name: str) -> str:
        """sha256 of a finished file, in hexadecimal; reads it."""
        with LocalSource(self.payload / name) as source:
            return sha256_of(source)

    def sink(self, name: str, size: int) -> FileSink:
        """The file `name` (relative, forward slashes) of the output, `size` bytes, preallocated."""
        check_relative(name, file=printable(str(self.placement.out)), field="file name")
        with self._mutex:
            if self.published:
                self._write_again()
            self._lock.check()
            if name in self._sinks:
                _refuse("is opened twice", name)
            path = self.placement.payload / name
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                self._disk.mkdir(self.placement.payload / parent)
            sink = FileSink.open(self._disk, path, name, size)
            self._sinks[name] = sink
        return sink

    def put(self, name: str, content: bytes) -> None:
        """Write a small file of the output."""
        sink = self.sink(name, len(content))
        sink.write(0, memoryview(content))
        sink.finish()

    def finished(self, sink: FileSink) -> None:
        """Finish the sink, then enter it into the journal."""
        sink.finish()
        with self._mutex:
            self.done[sink.name] = sink.size
            self._write_journal()

    def commit(self) -> None:
        """Publish what was staged, then remove the staging directory.

        OutputError where OUT changed meanwhile in a way that may not be overwritten, or the disk
        fails; what is staged is then kept. BusyError where another run took OUT over.
        """
        if not self.published:
            try:
                self._publish()
            except AdaptoolError:
                self._lock.check()  # another run that took OUT over is what to report
                raise
        self._publishing = True
        self._disk.fsync_directory(self.placement.home)
        self._remove()
        self._committed = True

    def _is_resumable(self, error: BaseException | None) -> bool:
        """Whether the next run can go on: not where the Hub refused before the first byte came."""
        if isinstance(error, RemoteError) and not self.done:
            return any(sink.holds_work for sink in self._sinks.values())
        return error is not None and (
            isinstance(error, _RESUMABLE) or not isinstance(error, Exception)
        )

    def _remove(self) -> None:
        """Remove the staging directory, but not that of a run that took the output over."""
        self._disk.rmtree(self.placement.work)
        if self._lock.is_held and not self.placement.left():
            self._disk.rmtree(self.placement.partial)

    def _prepare(self) -> None:
        if _is_ours(self.placement.partial):
            take_over(self.placement, self._disk)
            settle(self.placement, self._disk, self._lock.check)
        publication = self._lock.publication
        if publication is not None and publication.plan == self._plan:
            self.published = is_published(publication, self.placement)
        if self.placement.in_place:
            self.findings += (weaker_promise(self.placement),)
        if not self.published:
            check_replaceable(self.placement, overwrite=self._overwrite)
            self._take_up()

    def _take_up(self) -> None:
        """Continue the staging directory that is there, or start one."""
        partial = self.placement.partial
        if os.path.lexists(partial):
            journal = self._usable_journal()
            if journal is not None:
                self.done = dict(journal.done)
                self._write_journal()
                return
            self.findings += (_started_over(partial),)
        self._start()

    def _usable_journal(self) -> Journal | None:
        """The journal of this plan, where what it speaks of is there and ours."""
        if not _is_ours(self.placement.partial) or not _is_ours(self.placement.work):
            return None
        journal = read_journal(self.placement.journal)
        if journal is None or journal.plan != self._plan:
            return None
        publication = self._lock.publication
        payload, in_place = self.placement.payload, self.placement.in_place
        if publication is not None and not in_place and not holds(publication, payload):
            return None  # it was swapped: what is staged is the old output
        return journal if self.placement.payload.is_dir() else None

    def _start(self) -> None:
        self._lock.record(None)
        self._disk.rmtree(self.placement.partial)
        self._disk.mkdir(self.placement.partial)
        self._disk.mkdir(self.placement.work)
        self._disk.mkdir(self.placement.payload)
        self.done = {}
        self._write_journal()

    def _write_again(self) -> None:
        """Write what is published already: as if OUT were to be overwritten."""
        self._start()
        self.published = False
        self._overwrite = True

    def _write_journal(self) -> None:
        self._lock.check()
        write_journal(Journal(self._plan, self.done), self.placement.journal, self._disk)

    def _publish(self) -> None:
        self._check_finished()
        self._make_durable()
        check_replaceable(self.placement, overwrite=self._overwrite)
        files = {name: sink.size for name, sink in self._sinks.items()}
        moves = plan_moves(self.placement, files) if self.placement.in_place else None
        self._publishing = True
        mark = mark_of(self.placement.payload, files)
        self._lock.record(Publication(self._plan, mark, files))
        if moves is not None:
            journal = Journal(self._plan, self.done, moves)
            write_journal(journal, self.placement.journal, self._disk)
        publish(self.placement, moves, self._disk, self._lock.check)

    def _check_finished(self) -> None:
        if not self._sinks:
            _refuse("is committed without files", str(self.placement.out))
        for name, sink in self._sinks.items():
            if not sink.finished:
                _refuse("is committed unfinished", name)
        if self.placement.single_file and [*self._sinks] != [self.placement.out.name]:
            _refuse(f"is not the one file {self.placement.out.name}", ", ".join(self._sinks))

    def _make_durable(self) -> None:
        """Remove what this run did not write, and flush all directories, the deepest first."""
        payload = self.placement.payload
        for name, _ in files_under(payload):
            if name not in self._sinks:
                self._disk.unlink(payload / name)
        parents = {
            payload / parent for name in self._sinks for parent in PurePosixPath(name).parents
        }
        for folder in sorted(parents, key=lambda path: (-len(path.parts), path)):
            self._disk.fsync_directory(folder)
        self._disk.fsync_directory(self.placement.work)
        self._disk.fsync_directory(self.placement.partial)


def _is_ours(folder: Path) -> bool:
    """Whether a directory lies there that this user made."""
    try:
        status = os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _started_over(partial: Path) -> Finding:
    return Finding(
        code=Code.STAGING_DIFFERS,
        severity=Severity.NOTE,
        message="what an earlier run left is of another plan or damaged: started over",
        file=printable(str(partial)),
    )


def _refuse(what: str, name: str) -> NoReturn:
    raise InternalError(what, code=Code.INTERNAL, file=printable(name))
