"""Staging and publishing, where nothing goes wrong or our own code does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from adaptool.errors import AdaptoolError, InputError, InternalError, OutputError
from adaptool.findings import Code
from adaptool.store.disk import Disk, OpenFile
from adaptool.store.lock import OutputLock
from adaptool.store.placement import place
from adaptool.store.staging import Staging
from faulty_disk import Fault, FaultPlan, FaultyDisk, Killed

Step = Callable[[Staging], object]

FILES = {"model.safetensors": b"weights", "sub/deep/config.json": b"{}", "empty": b""}


def write(out: Path, disk: Disk | None = None, *, plan: str = "plan", **options: bool) -> Staging:
    """Publish the files and a receipt."""
    with Staging.open(out, plan, disk or Disk(), **options) as staging:
        put_all(staging, plan)
        staging.commit()
    return staging


def put_all(staging: Staging, plan: str = "plan") -> None:
    outputs = [{"name": name, "bytes": len(content)} for name, content in FILES.items()]
    for name, content in FILES.items():
        staging.put(name, content)
    staging.put("adaptool.json", json.dumps({"plan": plan, "outputs": outputs}).encode())


def use(out: Path, *steps: Step, **options: bool) -> None:
    """Do the steps in a staging of their own."""
    with Staging.open(out, "plan", Disk(), **options) as staging:
        for step in steps:
            step(staging)


def interrupt(_: Staging) -> None:
    raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file()]
    found = {str(path.relative_to(out)): path.read_bytes() for path in files}
    found.pop("adaptool.json", None)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_output_appears_whole_and_alone(out: Path) -> None:
    """All files at once; no journal, no lock, no staging directory."""
    with Staging.open(out, "plan", Disk()) as staging:
        put_all(staging)
        assert not out.exists()
        staging.commit()
        assert contents(out) == FILES
    assert names(out.parent) == ["out"]


def test_umask_decides_about_modes(out: Path) -> None:
    """The published directory and files are as if the user had made them."""
    before = os.umask(0o027)
    try:
        write(out)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (out, out / "sub", out / "sub" / "deep")}
    assert (modes, folders) == ({0o640}, {0o750})


def test_symlink_as_output_is_followed(tmp_path: Path) -> None:
    """The link stays, what it points to is the output."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/out")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real" / "out") == FILES
    assert names(tmp_path / "real") == ["out"]


def test_longest_name_is_staged(tmp_path: Path) -> None:
    """A name that leaves no room for a suffix is staged under its digest."""
    out = tmp_path / ("n" * 255)
    write(out)
    assert contents(out) == FILES
    assert names(tmp_path) == [out.name]


def test_relative_output_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT is relative to where the process is."""
    monkeypatch.chdir(tmp_path)
    write(Path("out"))
    assert contents(tmp_path / "out") == FILES


def test_nothing_is_left_without_commit(out: Path) -> None:
    """Leaving the block without commit and without error publishes nothing."""
    with Staging.open(out, "plan", Disk()) as staging:
        put_all(staging)
    assert names(out.parent) == []


def test_files_of_an_earlier_run_that_are_not_written_again_go(out: Path) -> None:
    """What this run did not vouch for is not published."""
    with pytest.raises(KeyboardInterrupt):
        use(out, lambda staging: staging.put("sub/more", b"more"), interrupt)
    write(out)
    assert contents(out) == FILES


def test_sinks_are_opened_by_threads(out: Path) -> None:
    """Twenty files at a time, the journal in order."""
    with Staging.open(out, "plan", Disk()) as staging:
        threads = [
            Thread(target=lambda n=n: staging.finished(staging.sink(f"{n}", n))) for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        journal = json.loads(staging.placement.journal.read_bytes())
        staging.commit()
    assert journal["done"] == {str(n): n for n in range(20)}
    assert {int(path.name): path.stat().st_size for path in out.iterdir()} == {
        n: n for n in range(20)
    }


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../b", "", "a\\b", ".git/config"])
def test_unsafe_name_is_refused(out: Path, name: str) -> None:
    """Names come from inputs."""
    with pytest.raises(InputError) as caught:
        use(out, lambda staging: staging.put(name, b"x"))
    assert caught.value.code is Code.PATH_UNSAFE


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("twice", [lambda staging: staging.put("a", b""), lambda staging: staging.put("a", b"")]),
        ("without files", [Staging.commit]),
        ("unfinished", [lambda staging: staging.sink("a", 1), Staging.commit]),
    ],
)
def test_misuse_is_a_bug(out: Path, what: str, steps: list[Step]) -> None:
    """A name twice, nothing to commit, a file not finished: nothing is published."""
    with pytest.raises(InternalError, match=what):
        use(out, *steps)
    assert names(out.parent) == []


def test_single_file_has_the_name_of_the_output(out: Path) -> None:
    """Another name, or a second file, would be lost."""
    with pytest.raises(InternalError, match="one file out"):
        use(out, put_all, Staging.commit, single_file=True)
    assert names(out.parent) == []


def kill_after(operation: str, out: Path, *, plan: str = "plan", **options: bool) -> None:
    """Run until the file system has seen `operation` for the last time, and no further."""
    counting = FaultyDisk()
    write(out.with_name("count"), counting, plan=plan)
    at = len(counting.operations) - counting.operations[::-1].index(operation)
    Disk().rmtree(out.with_name("count"))
    disk = FaultyDisk(FaultPlan(at, Fault.KILL))
    with pytest.raises(Killed):
        write(out, disk, plan=plan, **options)
    disk.bury()


def test_published_output_may_be_written_again(out: Path) -> None:
    """A caller that does not look at `published` gets the same result."""
    kill_after("rename_new", out)
    assert contents(out) == FILES
    with Staging.open(out, "plan", Disk()) as staging:
        assert staging.published
        put_all(staging)
        staging.commit()
    assert contents(out) == FILES
    assert names(out.parent) == ["out"]


def test_output_of_a_killed_run_is_not_taken_for_that_of_another_plan(out: Path) -> None:
    """Another plan needs --overwrite, and then what is staged is not believed."""
    kill_after("rename_new", out)
    with pytest.raises(OutputError) as caught:
        write(out, plan="other")
    assert caught.value.code is Code.OUTPUT_EXISTS
    assert not write(out, plan="other", overwrite=True).published
    assert json.loads((out / "adaptool.json").read_bytes())["plan"] == "other"
    assert names(out.parent) == ["out"]


def test_removed_output_is_written_again(out: Path) -> None:
    """Killed after publishing, then OUT was removed: the run starts over."""
    kill_after("rename_new", out)
    Disk().rmtree(out)
    assert not write(out).published
    assert contents(out) == FILES


class Mounted(Disk):
    """A disk with one mount point."""

    def __init__(self, point: Path) -> None:
        self.point = point

    def is_mount_point(self, path: Path) -> bool:
        """Only there."""
        return path == self.point


def test_mount_point_is_filled_file_by_file(out: Path) -> None:
    """The directory itself stays, and the weaker promise is said."""
    out.mkdir()
    (out / "old").write_bytes(b"old")
    (out / "adaptool.json").write_text(json.dumps({"outputs": [{"name": "old", "bytes": 3}]}))
    inode = out.stat().st_ino
    staging = write(out, Mounted(out), overwrite=True)
    assert [finding.code for finding in staging.findings] == [Code.PUBLISH_WEAKER]
    assert out.stat().st_ino == inode
    assert contents(out) == FILES
    assert names(out.parent) == ["out"]


def test_closed_parent_is_staged_inside(out: Path) -> None:
    """Where the parent is read-only, an existing OUT is home to its own staging directory."""

    class ClosedParent(Disk):
        """A disk on which nothing can be made beside OUT."""

        def writable(self, directory: Path) -> bool:
            """In OUT only."""
            return directory == out

    out.mkdir()
    assert place(out, ClosedParent()).partial == out / ".adaptool-partial"
    write(out, ClosedParent())
    assert contents(out) == FILES


def test_foreign_staging_directory_is_not_believed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared directory somebody else may have prepared one."""
    with pytest.raises(KeyboardInterrupt):
        use(out, put_all, interrupt)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert [finding.code for finding in write(out).findings] == [Code.STAGING_DIFFERS]


def test_file_in_place_of_the_staging_directory_is_replaced(out: Path) -> None:
    """Whatever lies under our name is removed."""
    out.with_name(".out.adaptool-partial").write_text("")
    write(out)
    assert names(out.parent) == ["out"]


def test_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path: Path) -> None:
    """Its holder removed it between opening and locking: the next file is taken."""

    class Slow(Disk):
        """A disk on which the holder lets go at the worst moment."""

        late = False

        def open_or_create(self, path: Path) -> OpenFile:
            """Open, then lose the name, once."""
            file = super().open_or_create(path)
            if not self.late:
                self.late = True
                path.unlink()
            return file

    lock = OutputLock.acquire(tmp_path / "lock", Slow())
    with pytest.raises(AdaptoolError) as caught:
        OutputLock.acquire(tmp_path / "lock", Disk())
    assert caught.value.code is Code.OUTPUT_BUSY
    lock.release()
    assert not names(tmp_path)
