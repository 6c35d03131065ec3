"""What the destination, the disk and other runs can do to an output: rows F1 to F18."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptool.errors import (
    AdaptoolError,
    BusyError,
    InputError,
    Interrupted,
    OutputError,
    ResourceError,
    UsageError,
)
from adaptool.findings import Code
from adaptool.store.disk import Disk, Flock
from adaptool.store.preflight import SPARE_BYTES, preflight
from adaptool.store.staging import Staging
from faulty_disk import FailingDisk, Fault, FaultPlan, FaultyDisk, Killed

BODY = b"0123456789" * 10_000
FILE = "model.safetensors"


def check(out: Path, *inputs: Path, disk: Disk | None = None, **options: Any) -> None:
    options = {"overwrite": False, "need_bytes": 1000} | options
    preflight(out, inputs, disk=disk or Disk(), **options)


def write(out: Path, disk: Disk | None = None, *, plan: str = "plan", **options: Any) -> Staging:
    """Write and publish one file; the staging it went through."""
    with Staging.open(out, plan, disk or Disk(), **options) as staging:
        if not staging.published:
            sink = staging.sink(out.name if options.get("single_file") else FILE, len(BODY))
            sink.write(0, memoryview(BODY))
            staging.finished(sink)
        staging.commit()
    return staging


RUN = "RUN"
TOKEN = re.compile(r"(?<=/)[0-9a-f]{32}(?=/)")


def partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.adaptool-partial")


def staged(out: Path) -> Path:
    """The staged file: in the directory of the run that made it, or of none."""
    return next(partial(out).glob("*/out"), partial(out) / RUN / "out") / FILE


def interrupt(out: Path, *, plan: str = "plan") -> None:
    """Leave a staging directory with one finished file."""
    with pytest.raises(KeyboardInterrupt):
        stop(out, KeyboardInterrupt(), plan=plan)


def stop(out: Path, error: BaseException, *, plan: str = "plan") -> None:
    """Finish one file, then fail."""
    with Staging.open(out, plan, Disk()) as staging:
        sink = staging.sink(FILE, len(BODY))
        sink.write(0, memoryview(BODY))
        staging.finished(sink)
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def refused(kind: type[AdaptoolError], code: Code, file: Path) -> Iterator[Any]:
    """An error of that class and code, naming the file, with something to do."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code is code
    assert str(file) in TOKEN.sub(RUN, caught.value.file or "")
    assert caught.value.hint


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def receipt_for(out: Path, **files: int) -> None:
    outputs = [{"name": name, "bytes": size} for name, size in files.items()]
    (out / "adaptool.json").write_text(json.dumps({"outputs": outputs}))


class TestF1Exists:
    """F1: OUT exists."""

    def test_directory_with_files_is_refused(self, out: Path) -> None:
        """Without --overwrite whatever is there stays."""
        out.mkdir()
        (out / "mine").touch()
        with refused(OutputError, Code.OUTPUT_EXISTS, out) as caught:
            check(out)
        assert "--overwrite" in caught.value.hint
        with refused(OutputError, Code.OUTPUT_EXISTS, out):
            write(out)
        assert names(out.parent) == ["out"]

    @pytest.mark.parametrize("single_file", [False, True])
    def test_file_is_refused(self, out: Path, single_file: bool) -> None:
        """A file counts as not empty, even with no bytes."""
        out.touch()
        with refused(OutputError, Code.OUTPUT_EXISTS, out):
            check(out, single_file=single_file)

    def test_empty_directory_is_used(self, out: Path) -> None:
        """An empty directory needs no --overwrite."""
        out.mkdir()
        check(out)
        write(out)
        assert (out / FILE).read_bytes() == BODY

    @pytest.mark.parametrize("single_file", [False, True])
    @pytest.mark.parametrize("kind", ["file", "empty directory", "directory"])
    def test_overwrite_replaces(self, out: Path, kind: str, single_file: bool) -> None:
        """A file, an empty directory or one that a receipt accounts for is replaced."""
        if kind == "file":
            out.write_text("old")
        else:
            out.mkdir()
        if kind == "directory":
            (out / "sub").mkdir()
            (out / "sub" / "old").write_text("old")
            (out / "SHA256SUMS").touch()
            receipt_for(out, **{"sub/old": 3})
        check(out, overwrite=True, single_file=single_file)
        write(out, overwrite=True, single_file=single_file)
        assert (out if single_file else out / FILE).read_bytes() == BODY
        assert names(out.parent) == ["out"]

    @pytest.mark.parametrize(
        "stranger", ["notes.txt", "model", "link", "sub/deep", "adaptool.json"]
    )
    def test_overwrite_refuses_what_no_receipt_accounts_for(self, out: Path, stranger: str) -> None:
        """One file more, of another size or kind, and the directory is not ours to replace."""
        out.mkdir()
        (out / "model").write_text("abc")
        receipt_for(out, model=4 if stranger == "model" else 3, link=3)
        if stranger == "link":
            (out / "link").symlink_to("model")
        elif stranger == "adaptool.json":
            (out / "adaptool.json").write_text("[]")
        elif stranger != "model":
            (out / stranger).parent.mkdir(exist_ok=True)
            (out / stranger).touch()
        before = sorted(out.rglob("*"))
        with refused(OutputError, Code.OUTPUT_EXISTS, out) as caught:
            check(out, overwrite=True)
        assert repr(stranger) in caught.value.message
        assert sorted(out.rglob("*")) == before

    def test_overwrite_refuses_a_device(self, out: Path) -> None:
        """What is neither file nor directory is never replaced."""
        os.mkfifo(out)
        with refused(OutputError, Code.OUTPUT_EXISTS, out):
            check(out, overwrite=True)

    def test_a_file_that_appears_meanwhile_stays(self, out: Path) -> None:
        """Publishing does not clobber what another program made while the run went on."""
        single = {"single_file": True}
        with (
            refused(OutputError, Code.OUTPUT_EXISTS, out),
            Staging.open(out, "plan", Disk(), **single) as staging,
        ):
            staging.put("out", BODY)
            out.write_text("mine")
            staging.commit()
        assert out.read_text() == "mine"


class TestF2SameAsInput:
    """F2: OUT is an input."""

    @pytest.mark.parametrize("how", ["same", "symlink", "hardlink", "dotted"])
    def test_output_that_is_the_input_is_refused(self, tmp_path: Path, how: str) -> None:
        """By whatever name it is called."""
        source, out = tmp_path / "base.safetensors", tmp_path / "other.safetensors"
        source.touch()
        if how == "symlink":
            out.symlink_to(source)
        elif how == "hardlink":
            out.hardlink_to(source)
        else:
            out = source if how == "same" else tmp_path / "." / ".." / tmp_path.name / source.name
        with refused(UsageError, Code.OUTPUT_IS_INPUT, out) as caught:
            check(out, source, overwrite=True, single_file=True)
        assert str(source) in caught.value.message


class TestF3Overlap:
    """F3: OUT and an input lie in each other."""

    @pytest.mark.parametrize("name", ["base/out", "base/sub/out", "link/out"])
    def test_output_inside_an_input_is_refused(self, tmp_path: Path, name: str) -> None:
        """Also through a symlink to the input."""
        (tmp_path / "base" / "sub").mkdir(parents=True)
        (tmp_path / "link").symlink_to("base")
        with refused(UsageError, Code.OUTPUT_OVERLAPS_INPUT, tmp_path / name):
            check(tmp_path / name, tmp_path / "base")

    def test_input_inside_the_output_is_refused(self, tmp_path: Path) -> None:
        """Replacing OUT would remove the input."""
        (tmp_path / "out" / "base").mkdir(parents=True)
        with refused(UsageError, Code.OUTPUT_OVERLAPS_INPUT, tmp_path / "out"):
            check(tmp_path / "out", tmp_path / "out" / "base", overwrite=True)

    def test_a_neighbour_with_a_longer_name_is_no_overlap(self, tmp_path: Path) -> None:
        """`base` and `base-merged` share letters, nothing else."""
        (tmp_path / "base").mkdir()
        check(tmp_path / "base-merged", tmp_path / "base", tmp_path / "absent")


class Small(Disk):
    """A disk with 100 MB free."""

    def free_space(self, path: Path) -> int:  # noqa: ARG002
        """Always the same."""
        return 100_000_000


class TestF4Preflight:
    """F4: the disk is too small, seen before the first byte."""

    def test_need_and_free_are_named(self, out: Path) -> None:
        """Both numbers, and how much to free."""
        with refused(OutputError, Code.DISK_FULL, out) as caught:
            check(out, need_bytes=100_000_000, disk=Small())
        assert str(100_000_000 + SPARE_BYTES) in caught.value.message
        assert "100.0 MB are free" in caught.value.message
        assert "free 67.1 MB and re-run the same command" in caught.value.hint
        assert not names(out.parent)

    def test_what_is_staged_counts_as_free(self, out: Path) -> None:
        """A run that is taken up again does not need its finished files twice."""
        interrupt(out)
        held = staged(out).stat().st_blocks * 512
        check(out, need_bytes=100_000_000 - SPARE_BYTES + held, disk=Small())


class TestF5Full:
    """F5: the disk fills up meanwhile."""

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize("operation", ["open", "mkdir", "preallocate", "pwrite", "fsync"])
    def test_full_disk_keeps_what_is_staged(self, out: Path, number: int, operation: str) -> None:
        """Exit 5 and what to do; the same command goes on when there is space."""
        with refused(OutputError, Code.DISK_FULL, out.parent) as caught:
            write(out, FailingDisk(number, operation))
        assert os.strerror(number) in caught.value.message
        assert "re-run the same command" in caught.value.hint
        assert not out.exists()
        write(out)
        assert (out / FILE).read_bytes() == BODY

    def test_inodes_are_named(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Space may be left while no file can be made."""
        room = SimpleNamespace(f_files=10, f_favail=0, f_bavail=9, f_frsize=4096)
        monkeypatch.setattr(os, "statvfs", lambda _: room)
        with refused(OutputError, Code.DISK_FULL, out.parent) as caught:
            write(out, FailingDisk(errno.ENOSPC, "open"))
        assert "no inodes are free" in caught.value.message

    def test_space_of_a_file_that_does_not_fit_is_given_back(self, out: Path) -> None:
        """A preallocation that failed holds nothing."""
        with refused(OutputError, Code.DISK_FULL, staged(out)):
            write(out, FailingDisk(errno.ENOSPC, "preallocate"))
        assert partial(out).is_dir()
        assert not staged(out).exists()


class Closed(Disk):
    """A disk on which one directory is read-only."""

    def __init__(self, closed: Path) -> None:
        self.closed = closed

    def writable(self, directory: Path) -> bool:
        """Everywhere else."""
        return directory != self.closed


class TestF6NotWritable:
    """F6: the place is read-only or not there."""

    def test_missing_parent_is_named(self, tmp_path: Path) -> None:
        """Nothing is made on the way."""
        out = tmp_path / "absent" / "out"
        with refused(OutputError, Code.OUTPUT_PARENT_MISSING, out) as caught:
            check(out)
        assert str(out.parent) in caught.value.message
        with refused(OutputError, Code.WRITE_FAILED, out.parent):
            write(out)

    def test_parent_that_is_a_file_is_named(self, tmp_path: Path) -> None:
        """A file holds no directory."""
        (tmp_path / "file").touch()
        with refused(OutputError, Code.OUTPUT_PARENT_MISSING, tmp_path / "file" / "out"):
            check(tmp_path / "file" / "out")

    def test_closed_parent_is_refused(self, out: Path) -> None:
        """Before anything is computed."""
        with refused(OutputError, Code.OUTPUT_NOT_WRITABLE, out):
            check(out, disk=Closed(out.parent))

    def test_closed_old_output_is_refused(self, out: Path) -> None:
        """It could not be removed after the swap."""
        out.mkdir()
        with refused(OutputError, Code.OUTPUT_NOT_WRITABLE, out):
            check(out, overwrite=True, disk=Closed(out))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_permission_is_asked_of_the_system(self, out: Path) -> None:
        """A directory without its write bit."""
        out.parent.chmod(0o555)
        with refused(OutputError, Code.OUTPUT_NOT_WRITABLE, out):
            check(out)
        out.parent.chmod(0o755)

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
    def test_read_only_file_system_is_named(self, out: Path, number: int) -> None:
        """When it shows only at the first write."""
        with refused(OutputError, Code.OUTPUT_NOT_WRITABLE, out.parent):
            write(out, FailingDisk(number, "open"))


class TestF7Device:
    """F7: the device fails."""

    @pytest.mark.parametrize("operation", ["pwrite", "fsync"])
    def test_failed_file_is_discarded(self, out: Path, operation: str) -> None:
        """Its pages may look written and never be, so no later run compares with them."""
        disk = FailsLater(operation)
        with (
            refused(OutputError, Code.WRITE_FAILED, staged(out)) as caught,
            Staging.open(out, "plan", disk) as staging,
        ):
            sink = staging.sink(FILE, len(BODY))
            disk.armed = True
            sink.write(0, memoryview(BODY))
            sink.finish()
        assert operation in caught.value.message
        assert partial(out).is_dir()
        assert not staged(out).exists()
        assert not out.exists()


class FailsLater(FailingDisk):
    """EIO for one operation, once armed."""

    __slots__ = ("armed",)

    def __init__(self, operation: str) -> None:
        super().__init__(errno.EIO, operation)
        self.armed = False

    def perform(self, operation: str, call: Any, *arguments: object) -> Any:
        """Fail where armed."""
        if self.armed:
            return super().perform(operation, call, *arguments)
        return call(*arguments)


class TestF8TooLarge:
    """F8: the file is too large for its file system or its limit."""

    @pytest.mark.parametrize("lacking", [{}, {"preallocate": None}], ids=["reserve", "write"])
    def test_file_size_limit_is_named(self, out: Path, lacking: dict[str, object]) -> None:
        """A real limit: the kernel writes short, then refuses."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(BODY) // 2, hard))
        try:
            with refused(OutputError, Code.FILE_TOO_LARGE, staged(out)) as caught:
                write(out, FaultyDisk(lacking=lacking))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "--max-shard-size" in caught.value.hint


class Dribbling(Disk):
    """A disk that takes a few bytes at a time and is interrupted before every call."""

    def __init__(self) -> None:
        self.interrupted = False

    def perform(self, operation: str, call: Any, *arguments: Any) -> Any:
        """Every other time, nothing."""
        self.interrupted = not self.interrupted
        if self.interrupted:
            raise InterruptedError(errno.EINTR, "interrupted")
        if operation == "pwrite":
            fd, chunk, offset = arguments
            return call(fd, chunk[:997], offset)
        return call(*arguments)


def test_f9_short_writes_and_interrupted_calls_are_continued(out: Path) -> None:
    """F9: every byte arrives."""
    write(out, Dribbling())
    assert (out / FILE).read_bytes() == BODY


def test_f10_failed_close_is_an_error(out: Path) -> None:
    """F10: a network file system may report a lost write only when the file is closed."""
    with refused(OutputError, Code.WRITE_FAILED, out.parent):
        write(out, FailingDisk(errno.EIO, "close"))
    assert not out.exists()


def test_f11_second_run_is_busy(out: Path) -> None:
    """F11: one run per output; the other one is named."""
    lock = out.with_name(".out.adaptool.lock")
    with Staging.open(out, "plan", Disk()) as staging:
        with refused(BusyError, Code.OUTPUT_BUSY, lock) as caught:
            Staging.open(out, "plan", Disk())
        assert f"process {os.getpid()} " in caught.value.message
        assert caught.value.retryable
        staging.put(FILE, BODY)
        staging.commit()
    assert names(out.parent) == ["out"]


def test_f12_without_locks_the_file_is_the_lock(out: Path) -> None:
    """F12: where the file system has no locks, a lock file left behind has to be removed."""
    lockless = {"flock": Flock.UNSUPPORTED}
    write(out, FaultyDisk(lacking=lockless))
    lock = out.with_name(".out.adaptool.lock")
    lock.touch()
    with refused(BusyError, Code.OUTPUT_BUSY, lock) as caught:
        write(out, FaultyDisk(lacking=lockless), overwrite=True)
    assert "delete this file" in caught.value.hint


def test_f13_staging_of_another_plan_is_started_over(out: Path) -> None:
    """F13: what is staged for another plan is removed, and that is said."""
    interrupt(out, plan="another")
    staging = write(out)
    assert [finding.code for finding in staging.findings] == [Code.STAGING_DIFFERS]
    assert staging.done == {FILE: len(BODY)}


def test_f14_staging_of_the_same_plan_is_resumed(out: Path) -> None:
    """F14: the finished files are known, their sinks say that they are resumed."""
    interrupt(out)
    with Staging.open(out, "plan", Disk()) as staging:
        assert staging.done == {FILE: len(BODY)}
        assert staging.findings == ()
        assert staging.sink(FILE, len(BODY)).resumed


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"format": 9, "plan": "plan", "done": {}}', b"[" * 10**6]
)
def test_f15_damaged_journal_starts_over(out: Path, text: bytes) -> None:
    """F15: a journal that cannot be read is as good as none."""
    interrupt(out)
    (journal,) = partial(out).glob("*/journal.json")
    journal.write_bytes(text)
    staging = write(out)
    assert [finding.code for finding in staging.findings] == [Code.STAGING_DIFFERS]
    assert (out / FILE).read_bytes() == BODY


def test_f16_staged_zeros_of_the_right_size_are_found(out: Path) -> None:
    """F16: the size is no proof; content is compared and put right."""
    interrupt(out)
    staged(out).write_bytes(bytes(len(BODY)))
    write(out)
    assert (out / FILE).read_bytes() == BODY


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(1),
        Interrupted(15, "terminated"),
        OutputError("full", code=Code.DISK_FULL),
        ResourceError("memory", code=Code.OUT_OF_MEMORY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_f17_an_interrupted_run_stays_staged(out: Path, error: BaseException) -> None:
    """F17: what may go better next time is kept, the lock is not."""
    with pytest.raises(type(error)):
        stop(out, error)
    assert names(out.parent) == [partial(out).name]


@pytest.mark.parametrize(
    "error",
    [InputError("bad", code=Code.NOT_FINITE), BusyError("b", code=Code.OUTPUT_BUSY), ValueError()],
    ids=lambda error: type(error).__name__,
)
def test_f17_an_error_that_would_come_back_leaves_nothing(out: Path, error: Exception) -> None:
    """F17: the opposite: the same inputs would fail again."""
    with pytest.raises(type(error)):
        stop(out, error)
    assert names(out.parent) == []


def test_f18_a_kill_after_publishing_is_seen_as_done(out: Path) -> None:
    """F18: the same command succeeds without doing the work again, and tidies up."""
    counting = FaultyDisk()
    write(out, counting)
    renamed = counting.operations.index("rename_new")
    other = out.with_name("other")
    disk = FaultyDisk(FaultPlan(renamed + 1, Fault.KILL))
    with pytest.raises(Killed):
        write(other, disk)
    disk.bury()
    check(other)
    inode = (other / FILE).stat().st_ino
    assert write(other).published
    assert (other / FILE).stat().st_ino == inode
    assert names(out.parent) == ["other", "out"]


def test_f18_a_changed_output_is_not_taken_for_done(out: Path) -> None:
    """F18: after a kill OUT was edited by somebody: it is theirs now."""
    counting = FaultyDisk()
    write(out.with_name("first"), counting)
    disk = FaultyDisk(FaultPlan(counting.operations.index("rename_new") + 1, Fault.KILL))
    with pytest.raises(Killed):
        write(out, disk)
    disk.bury()
    (out / "mine").touch()
    with refused(OutputError, Code.OUTPUT_EXISTS, out):
        check(out)
    with refused(OutputError, Code.OUTPUT_EXISTS, out):
        write(out)
