"""resize, combine and convert with a fault at every operation on the disk, then the same again.

OUT, a directory or a single file, is absent, the old one or the new one after every trial; the
next run ends with the bytes of an undisturbed one and leaves no stray file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from adaptool import api
from adaptool.errors import AdaptoolError
from adaptool.store.disk import Disk
from command_line import ADAPTER
from faulty_disk import Fault, FaultPlan, FaultyDisk, Killed

STRUCK = (AdaptoolError, Killed, KeyboardInterrupt)
Verb = Callable[..., object]
VERBS: dict[str, Verb] = {
    "resize": lambda out, **more: api.resize(ADAPTER, out, rank=2, threads=1, **more),
    "combine": lambda out, **more: api.combine(ADAPTER, ADAPTER, out=out, threads=1, **more),
    "convert": lambda out, **more: api.convert(ADAPTER, out, to="peft", threads=1, **more),
}
OUTS = ("out", "out.safetensors")
QUICK = {Fault.KILL, Fault.NO_SPACE}
FAULTS = [
    pytest.param(fault, id=fault.name.lower(), marks=() if fault in QUICK else pytest.mark.slow)
    for fault in Fault
    if fault not in {Fault.EXIT, Fault.SHORT, Fault.RETRY}
]


def _content(out: Path) -> dict[str, bytes] | bytes | None:
    if out.is_dir():
        return {file.name: file.read_bytes() for file in sorted(out.iterdir())}
    return out.read_bytes() if out.exists() else None


def _strike(run: Callable[[Disk], object], plan: FaultPlan) -> bool:
    disk = FaultyDisk(plan)
    try:
        run(disk)
    except STRUCK:
        return True
    finally:
        disk.bury()
    return False


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "verb",
    ["resize", *(pytest.param(name, marks=pytest.mark.slow) for name in VERBS if name != "resize")],
)
def test_a_fault_leaves_out_whole(
    verb: str, fault: Fault, name: str, overwrite: bool, tmp_path: Path
) -> None:
    """Every operation in its turn."""
    write = VERBS[verb]
    write(tmp_path / f"new-{name}")
    new = _content(tmp_path / f"new-{name}")
    old = None
    if overwrite:
        api.resize(ADAPTER, tmp_path / f"old-{name}", rank=1)
        old = _content(tmp_path / f"old-{name}")
    disk = FaultyDisk()
    write(tmp_path / f"counted-{name}", disk=disk)
    disk.bury()
    step = 5 if overwrite else 3
    struck = 0
    for number in range(0, len(disk.operations), step):
        home = tmp_path / f"{number}"
        home.mkdir()
        out = home / name
        if overwrite:
            copy = shutil.copytree if name == "out" else shutil.copyfile
            copy(tmp_path / f"old-{name}", out)
        run = partial(_run, write, out, overwrite)
        struck += _strike(run, FaultPlan(number, fault))
        assert _content(out) in (old, new), number
        if _content(out) != new:
            run(Disk())
        assert _content(out) == new, number
        left = {entry.name for entry in home.iterdir()} - {name}
        assert all(entry.startswith(f".{name}.adaptool") for entry in left), left
        shutil.rmtree(home)
    assert struck


def _run(write: Verb, out: Path, overwrite: bool, disk: Disk) -> None:
    write(out, overwrite=overwrite, disk=disk)
