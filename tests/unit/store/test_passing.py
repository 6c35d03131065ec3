"""Directories and files that are there for a while."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from adaptool.errors import InputError, OutputError
from adaptool.findings import Code
from adaptool.store.disk import Disk
from adaptool.store.passing import check_passing_room, passing_directory
from adaptool.store.passing_files import PassingFiles
from adaptool.store.preflight import SPARE_BYTES


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary directories are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_passing_directory_goes_with_its_stack(room: Path) -> None:
    """Whatever was put there."""
    with ExitStack() as stack:
        folder = passing_directory(stack, "name")
        (folder / "file").write_bytes(b"x")
        assert folder.name == "name"
        assert folder.is_relative_to(room)
    assert list(room.iterdir()) == []


def test_no_place_for_passing_directories_is_exit_5(room: Path) -> None:
    """The hint names TMPDIR."""
    room.rmdir()
    with ExitStack() as stack, pytest.raises(OutputError) as caught:
        passing_directory(stack, "name")
    assert "TMPDIR" in str(caught.value.hint)


def test_room_that_is_missing_is_told_with_the_numbers(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits to the byte fits."""
    monkeypatch.setattr(Disk, "free_space", lambda _self, _path: 1000 + SPARE_BYTES)
    check_passing_room(1000, Disk(), "two shards")
    with pytest.raises(OutputError) as caught:
        check_passing_room(1001, Disk(), "two shards")
    error = caught.value
    assert (error.code, error.file) == (Code.DISK_FULL, str(room))
    assert f"{1001 + SPARE_BYTES} bytes" in error.message


def test_passing_file_is_written_read_and_dropped(tmp_path: Path) -> None:
    """In folders of its own; its room is free then."""
    with PassingFiles(tmp_path, Disk()) as files:
        sink = files.sink("a/b/file", 3)
        sink.write(0, memoryview(b"abc"))
        sink.finish()
        assert files.path("a/b/file").read_bytes() == b"abc"
        files.drop("a/b/file")
        assert not files.path("a/b/file").exists()


def test_passing_file_outside_its_directory_is_refused(tmp_path: Path) -> None:
    """Names come from a plan, and a plan from files."""
    with PassingFiles(tmp_path / "in", Disk()) as files, pytest.raises(InputError):
        files.sink("../out", 1)
