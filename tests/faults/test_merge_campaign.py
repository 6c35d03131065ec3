"""A whole merge with a fault at every operation on the disk, then the same command again.

After each trial OUT is absent, equal to the old output or equal to the new one, the inputs are as
they were, and a second run ends with the bytes of an undisturbed one and leaves no stray file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from adaptool import api
from adaptool.errors import AdaptoolError, OutputError
from adaptool.store.disk import Disk
from faulty_disk import Fault, FaultPlan, FaultyDisk, Killed
from small_pairs import Pair, write

STRUCK = (AdaptoolError, Killed, KeyboardInterrupt)
OURS = {".out.adaptool.lock", ".out.adaptool-partial"}
Tree = dict[str, bytes]
State = list[tuple[str, bytes, int, int]]


def tree(folder: Path) -> Tree | None:
    """Every file below `folder` with its bytes; None where it is not there."""
    if not folder.exists():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Scenario:
    """What is merged into which state of OUT, by how many threads."""

    pair: Pair
    old: Path | None
    new: Tree
    threads: int

    @property
    def whole(self) -> list[Tree | None]:
        """What OUT may be, whatever happens."""
        return [tree(self.old) if self.old is not None else None, self.new]

    def run(self, home: Path, disk: Disk) -> None:
        """Merge into `home`/out."""
        api.merge(
            self.pair.base,
            self.pair.adapter,
            home / "out",
            overwrite=self.old is not None,
            threads=self.threads,
            checksum=True,
            disk=disk,
        )

    def prepare(self, home: Path) -> None:
        """An empty directory, or one with the old output."""
        home.mkdir()
        if self.old is not None:
            shutil.copytree(self.old, home / "out")

    def inputs(self) -> State:
        """Names, bytes, modification times and modes of everything that is read."""
        files = sorted(self.pair.base.parent.rglob("*"))
        return [
            (str(file), file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_mode)
            for file in files
            if file.is_file()
        ]

    def operations(self, home: Path) -> int:
        """How many operations an undisturbed run takes; with several threads about that."""
        self.prepare(home)
        disk = FaultyDisk()
        self.run(home, disk)
        disk.bury()
        assert tree(home / "out") == self.new
        return len(disk.operations)

    def strike(self, home: Path, plan: FaultPlan) -> bool:
        """Run once with a fault; whether it failed."""
        disk = FaultyDisk(plan)
        try:
            self.run(home, disk)
        except STRUCK:
            return True
        finally:
            disk.bury()
        return False

    def again(self, home: Path) -> None:
        """The same command: it succeeds, or says that all had been done."""
        done = tree(home / "out") == self.new and names(home) == {"out"}
        says = pytest.raises(OutputError, match="not empty")
        disk = FaultyDisk()
        with says if done and self.old is None else nullcontext():
            self.run(home, disk)
        disk.bury()


Make = Callable[[bool, int], Scenario]


def names(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The inputs, shared by all trials: none may change them."""
    return write("lora", tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def outputs(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tree]:
    """An old output, cut into other shards, and what a new one holds."""
    home = tmp_path_factory.mktemp("outputs")
    old, new = home / "old", home / "new"
    api.merge(pair.base, pair.adapter, old, weight=0.5, max_shard_size=20_000)
    api.merge(pair.base, pair.adapter, new, checksum=True)
    found = tree(new)
    assert found is not None
    return old, found


@pytest.fixture(scope="module")
def scenario(pair: Pair, outputs: tuple[Path, Tree]) -> Make:
    """From whether an old output is replaced, and the number of threads."""
    old, new = outputs
    return lambda overwrite, threads: Scenario(pair, old if overwrite else None, new, threads)


def campaign(each: Scenario, fault: Fault, tmp_path: Path, *, step: int = 1) -> None:
    """Strike every `step`-th operation."""
    count = each.operations(tmp_path / "counted")
    before = each.inputs()
    struck = 0
    for number in range(0, count, step):
        home = tmp_path / str(number)
        each.prepare(home)
        failed = each.strike(home, FaultPlan(number, fault))
        struck += failed
        assert tree(home / "out") in each.whole, number
        assert names(home) - OURS <= {"out"}, number
        if failed:
            each.again(home)
        assert tree(home / "out") == each.new, number
        assert names(home) == {"out"}, number
        shutil.rmtree(home)
    assert each.inputs() == before
    assert struck or fault in {Fault.SHORT, Fault.RETRY}


FAULTS = [fault for fault in Fault if fault is not Fault.EXIT]
states = pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
workers = pytest.mark.parametrize("threads", [1, 2], ids=["one thread", "two threads"])


@states
def test_a_kill_leaves_out_whole(overwrite: bool, scenario: Make, tmp_path: Path) -> None:
    """Absent, old or new; the next run takes up what is staged. The slow test strikes them all."""
    each = scenario(overwrite, 2)
    campaign(each, Fault.KILL, tmp_path, step=3)


@states
@workers
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
def test_a_fault_leaves_out_whole(
    fault: Fault,
    overwrite: bool,
    threads: int,
    scenario: Make,
    tmp_path: Path,
) -> None:
    """A sample of the operations; all of them in the slow test below."""
    each = scenario(overwrite, threads)
    campaign(each, fault, tmp_path, step=29)


RACING = (Fault.KILL, Fault.NO_SPACE, Fault.IO_ERROR, Fault.CTRL_C)
EVERY = [(1, fault) for fault in FAULTS] + [(2, fault) for fault in RACING]


@pytest.mark.slow
@states
@pytest.mark.parametrize(("threads", "fault"), EVERY)
def test_a_fault_at_any_operation_leaves_out_whole(
    threads: int,
    fault: Fault,
    overwrite: bool,
    scenario: Make,
    tmp_path: Path,
) -> None:
    """Every operation of the merge fails once in every way."""
    each = scenario(overwrite, threads)
    campaign(each, fault, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", [20, 60, 75])
def test_a_kill_while_taking_up_a_killed_run(first: int, scenario: Make, tmp_path: Path) -> None:
    """A resumed run may be killed as well, at any operation."""
    each = scenario(True, 1)
    count = each.operations(tmp_path / "counted")
    for number in range(count):
        home = tmp_path / str(number)
        each.prepare(home)
        assert each.strike(home, FaultPlan(first, Fault.KILL))
        each.strike(home, FaultPlan(number, Fault.KILL))
        assert tree(home / "out") in each.whole, number
        each.again(home)
        assert tree(home / "out") == each.new, number
        assert names(home) == {"out"}, number
        shutil.rmtree(home)


def test_the_campaign_sees_a_torn_output(scenario: Make, tmp_path: Path) -> None:
    """Control: an fsync that does nothing publishes zeros at a power cut, and that is found."""
    each = scenario(True, 1)
    count = each.operations(tmp_path / "counted")
    torn = 0
    for number in range(0, count, 4):
        home = tmp_path / str(number)
        each.prepare(home)
        disk = FaultyDisk(FaultPlan(number, Fault.POWER_CUT), flushes=False)
        with pytest.raises(STRUCK):
            each.run(home, disk)
        disk.bury()
        torn += tree(home / "out") not in each.whole
        shutil.rmtree(home)
    assert torn


def test_full_disk_keeps_what_is_staged_and_says_so(scenario: Make, tmp_path: Path) -> None:
    """F5: exit 5 names the output and how to go on; the next run does."""
    each = scenario(False, 1)
    half = each.operations(tmp_path / "counted") // 2
    home = tmp_path / "home"
    each.prepare(home)
    disk = FaultyDisk(FaultPlan(half, Fault.STAYS_FULL))
    with pytest.raises(OutputError) as caught:
        each.run(home, disk)
    disk.bury()
    assert caught.value.exit_code == 5
    assert "out" in (caught.value.file or "")
    assert "re-run" in (caught.value.hint or "")
    assert names(home) == {".out.adaptool-partial"}
    each.again(home)
    assert tree(home / "out") == each.new
    assert names(home) == {"out"}
