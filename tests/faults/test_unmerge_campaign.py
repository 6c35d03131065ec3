"""A reversible merge and an unmerge, struck at operations on the disk: OUT is absent or complete.

The second run of the same command ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptool import api
from adaptool.errors import AdaptoolError
from adaptool.store.disk import Disk
from faulty_disk import Fault, FaultPlan, FaultyDisk, Killed
from small_pairs import Pair, write

STRUCK = (AdaptoolError, Killed, KeyboardInterrupt)
OURS = {".out.adaptool.lock", ".out.adaptool-partial"}
# A kill and a full disk in the fast part; every other fault in the slow one.
FAULTS = [
    pytest.param(
        fault,
        id=fault.name.lower(),
        marks=() if fault in {Fault.KILL, Fault.NO_SPACE} else pytest.mark.slow,
    )
    for fault in Fault
    if fault is not Fault.EXIT
]
Run = Callable[[Path, Disk], object]


def tree(folder: Path) -> dict[str, bytes] | None:
    """Every file below `folder` with its bytes; None where it is not there."""
    if not folder.exists():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write("modules-to-save", tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runs(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """What is struck, by name."""
    merged = tmp_path_factory.mktemp("merged") / "out"
    api.merge(pair.base, pair.adapter, merged, reversible=True)

    def merge(out: Path, disk: Disk) -> object:
        return api.merge(pair.base, pair.adapter, out, reversible=True, threads=2, disk=disk)

    def unmerge(out: Path, disk: Disk) -> object:
        return api.unmerge(merged, pair.adapter, out, exact=True, threads=2, disk=disk)

    return {"merge": merge, "unmerge": unmerge}


def campaign(run: Run, fault: Fault, folder: Path, step: int) -> None:
    """Strike every `step`-th operation, then run again."""
    (folder / "whole").mkdir()
    disk = FaultyDisk()
    run(folder / "whole" / "out", disk)
    disk.bury()
    whole = tree(folder / "whole" / "out")
    for number in range(0, len(disk.operations), step):
        home = folder / str(number)
        home.mkdir()
        disk = FaultyDisk(FaultPlan(number, fault))
        try:
            run(home / "out", disk)
        except STRUCK:
            pass
        finally:
            disk.bury()
        assert tree(home / "out") in (None, whole), number
        assert {path.name for path in home.iterdir()} - OURS <= {"out"}, number
        if tree(home / "out") is None or len(list(home.iterdir())) > 1:
            again = FaultyDisk()
            run(home / "out", again)
            again.bury()
        assert tree(home / "out") == whole, number
        assert {path.name for path in home.iterdir()} == {"out"}, number
        shutil.rmtree(home)


@pytest.mark.parametrize("name", ["merge", "unmerge"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_out_absent_or_complete(
    name: str, fault: Fault, runs: dict[str, Run], tmp_path: Path
) -> None:
    """A sample of the operations in every way."""
    campaign(runs[name], fault, tmp_path, step=17)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["merge", "unmerge"])
@pytest.mark.parametrize("fault", [Fault.KILL, Fault.NO_SPACE, Fault.IO_ERROR, Fault.CTRL_C])
def test_a_fault_at_any_operation_leaves_out_absent_or_complete(
    name: str, fault: Fault, runs: dict[str, Run], tmp_path: Path
) -> None:
    """Every operation."""
    campaign(runs[name], fault, tmp_path, step=1)
