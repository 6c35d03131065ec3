"""The operations of the disk, on the real one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from adaptool.errors import OutputError, ResourceError
from adaptool.findings import Code
from adaptool.store import disk as disk_module
from adaptool.store import kernel
from adaptool.store.disk import Disk, OpenFile, amount, output_error


@pytest.fixture
def file(tmp_path: Path) -> OpenFile:
    return Disk().open_or_create(tmp_path / "file")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_umask_is_honoured(tmp_path: Path, umask: int) -> None:
    """Files are 0666 and directories 0777, less the umask: another user can serve a model."""
    before = os.umask(umask)
    try:
        Disk().open_or_create(tmp_path / "file")
        Disk().mkdir(tmp_path / "folder")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_opening_says_whether_it_created(tmp_path: Path) -> None:
    """A file that was there is opened as it is."""
    assert Disk().open_or_create(tmp_path / "file").created
    (tmp_path / "file").write_text("abc")
    again = Disk().open_or_create(tmp_path / "file")
    assert not again.created
    assert os.pread(again.fd, 9, 0) == b"abc"


def test_opening_follows_no_symlink(tmp_path: Path) -> None:
    """A planted link must not turn a write into a write somewhere else."""
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError):
        Disk().open_or_create(tmp_path / "link")
    assert not (tmp_path / "victim").exists()


def test_preallocation_keeps_what_is_there(file: OpenFile) -> None:
    """The size is set, and the bytes before stay."""
    os.pwrite(file.fd, b"abc", 0)
    Disk().preallocate(file, 10_000)
    assert file.path.read_bytes() == b"abc" + bytes(9997)
    assert file.path.stat().st_blocks * 512 >= 10_000


def test_preallocation_extends_where_it_is_unsupported(
    file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without fallocate gets a sparse file."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "unsupported")

    monkeypatch.setattr(kernel, "allocate", unsupported)
    Disk().preallocate(file, 10_000)
    assert file.path.read_bytes() == bytes(10_000)


def test_preallocation_never_takes_the_last_byte(
    file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size beyond what is free is refused before the kernel hands out all there is."""

    def asked(*_: object) -> None:
        pytest.fail("the kernel was asked")

    monkeypatch.setattr(kernel, "allocate", asked)
    monkeypatch.setattr(Disk, "free_space", lambda *_: 4_000_000_000)
    with pytest.raises(OutputError) as caught:
        Disk().preallocate(file, 5_000_000_000)
    assert caught.value.code is Code.DISK_FULL
    assert "free 1.0 GB and re-run the same command" in (caught.value.hint or "")
    assert file.path.stat().st_blocks == 0


@pytest.mark.parametrize("other", ["file", "folder"])
def test_exchange_swaps_two_names(tmp_path: Path, other: str) -> None:
    """Files with directories too."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "inside").touch()
    old = tmp_path / "old"
    old.mkdir() if other == "folder" else old.touch()
    assert Disk().exchange(tmp_path / "new", old)
    assert (tmp_path / "old" / "inside").exists()
    assert (tmp_path / "new").is_dir() is (other == "folder")


def test_rename_new_replaces_nothing(tmp_path: Path) -> None:
    """A name that is taken stays taken."""
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("new")
    with pytest.raises(OutputError) as caught:
        Disk().rename_new(tmp_path / "new", tmp_path / "old")
    assert caught.value.code is Code.OUTPUT_EXISTS
    assert Disk().rename_new(tmp_path / "new", tmp_path / "free")
    assert (tmp_path / "old").read_text() == "old"
    assert (tmp_path / "free").read_text() == "new"


def test_missing_system_call_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A C library without renameat2 is a file system that cannot swap."""
    monkeypatch.setattr(kernel, "_RENAME", ("renameat_of_no_system",))
    (tmp_path / "one").touch()
    assert not Disk().exchange(tmp_path / "one", tmp_path / "one")
    assert not Disk().rename_new(tmp_path / "one", tmp_path / "two")


def test_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    """A link inside goes, what it points to stays; what is gone already is fine."""
    (tmp_path / "tree" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "toplink").symlink_to(tmp_path / "kept")
    for name in ("tree", "tree", "toplink"):
        Disk().rmtree(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "kept"]


def test_kernel_copy_reaches_the_offset(tmp_path: Path, file: OpenFile) -> None:
    """Bytes from the middle of one file to the middle of another."""
    source = Disk().open_or_create(tmp_path / "source")
    os.pwrite(source.fd, b"0123456789", 0)
    assert Disk().copy_range(source.fd, 2, file, 5, 4) == 4
    assert file.path.read_bytes() == bytes(5) + b"2345"
    assert Disk().copy_range(source.fd, 10, file, 0, 4) == 0


def test_write_that_takes_nothing_is_an_error(
    file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on for ever."""
    monkeypatch.setattr(Disk, "pwrite", lambda *_: 0)
    with pytest.raises(OutputError, match="takes no more bytes"):
        Disk().write_all(file, memoryview(b"abc"), 0)


def test_mount_points_are_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bind mounts of the same file system look like any directory to stat."""
    assert Disk().is_mount_point(Path("/"))
    assert not Disk().is_mount_point(tmp_path)
    line = b"36 35 98:0 /mnt1 " + os.fsencode(tmp_path) + b"/a\\040b rw - ext3 /dev/root rw\n"
    monkeypatch.setattr(Path, "read_bytes", lambda _: line)
    assert Disk().is_mount_point(tmp_path / "a b")


def test_running_out_of_handles_is_no_fault_of_the_output() -> None:
    """It is a limit of the process."""
    error = output_error(OSError(errno.EMFILE, "many"), Path("x"), "open")
    assert isinstance(error, ResourceError)
    assert "ulimit -n" in (error.hint or "")


def test_name_of_the_file_is_safe_to_print() -> None:
    """A control character in a path does not reach the terminal."""
    error = output_error(OSError(errno.EIO, "bad"), Path("a\x1b[31m"), "pwrite")
    assert str(error).isprintable()


def test_amounts_are_decimal() -> None:
    """As disks are sold."""
    assert [amount(n) for n in (0, 999, 1000, 3_140_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "3.1 GB",
    ]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_file_system_without_fsync_is_accepted(
    file: OpenFile, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be flushed is as durable as it gets."""

    def unsupported(_: int) -> None:
        raise OSError(number, "unsupported")

    monkeypatch.setattr(disk_module.os, "fsync", unsupported)
    Disk().fsync(file)
    Disk().fsync_directory(file.path.parent)
