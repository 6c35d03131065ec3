"""One file: whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.errors import AdaptoolError, OutputError
from adaptool.store.disk import Disk
from adaptool.store.single_file import write_file
from faulty_disk import Fault, FaultPlan, FaultyDisk, Killed

OLD, NEW = b"old " * 1000, b"new " * 1500


def test_file_is_written_and_nothing_beside_it(tmp_path: Path) -> None:
    """No staging directory and no lock stays."""
    write_file(tmp_path / "page.html", NEW, Disk(), overwrite=False)
    assert (tmp_path / "page.html").read_bytes() == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    """Exit 5 without overwrite; with it the new bytes."""
    out = tmp_path / "page.html"
    out.write_bytes(OLD)
    with pytest.raises(OutputError) as caught:
        write_file(out, NEW, Disk(), overwrite=False)
    assert caught.value.exit_code == 5
    assert out.read_bytes() == OLD
    write_file(out, NEW, Disk(), overwrite=True)
    assert out.read_bytes() == NEW


def test_directory_is_never_replaced(tmp_path: Path) -> None:
    """Not even an empty one, not even with overwrite."""
    out = tmp_path / "page.html"
    out.mkdir()
    with pytest.raises(OutputError):
        write_file(out, NEW, Disk(), overwrite=True)
    assert out.is_dir()


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.NO_SPACE, Fault.IO_ERROR])
def test_whatever_fails_the_file_is_old_or_new(tmp_path: Path, fault: Fault) -> None:
    """At every operation of the disk."""
    at = 0
    while True:
        folder = tmp_path / f"{at}"
        folder.mkdir()
        out = folder / "page.html"
        out.write_bytes(OLD)
        disk = FaultyDisk(FaultPlan(at=at, fault=fault))
        try:
            write_file(out, NEW, disk, overwrite=True)
        except (AdaptoolError, Killed):
            pass
        finally:
            disk.bury()
        assert out.read_bytes() in (OLD, NEW)
        if len(disk.operations) <= at:
            break
        at += 1
    assert at > 5
