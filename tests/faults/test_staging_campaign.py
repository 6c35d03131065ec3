"""Every operation of a small job fails once in every way; then the job is run again.

After each trial OUT is absent, equal to the old output or equal to the new one, inputs are as they
were, and the same command run again ends with the bytes of an undisturbed run and no stray file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import AdaptoolError, OutputError
from adaptool.store.disk import Disk, OpenFile
from adaptool.store.local import LocalSource
from adaptool.store.preflight import preflight
from adaptool.store.staging import Staging
from faulty_disk import EXIT_STATUS, Fault, FaultPlan, FaultyDisk, Killed

NAMES = ("model-1.safetensors", "model-2.safetensors", "sub/extra.safetensors")
STRUCK = (AdaptoolError, Killed, KeyboardInterrupt)
Tree = dict[str, bytes]


def shard(version: str, name: str, copied: bytes) -> tuple[bytes, bytes]:
    """What is written before and after the copied bytes of a file."""
    return f"{version} {name} ".encode() * 40, b"tail " * 30 + copied[:10]


@dataclass(frozen=True)
class Job:
    """A job in a directory of its own."""

    room: Path
    version: str = "new"
    single_file: bool = False
    overwrite: bool = False

    @property
    def home(self) -> Path:
        """The parent of OUT."""
        return self.room / "home"

    @property
    def out(self) -> Path:
        """The destination."""
        return self.home / ("out.safetensors" if self.single_file else "out")

    @property
    def source(self) -> Path:
        """The only input."""
        return self.room / "base" / "model.safetensors"

    def run(self, disk: Disk) -> None:
        """What an operation does with its output."""
        preflight(
            self.out,
            [self.source.parent],
            overwrite=self.overwrite,
            need_bytes=20_000,
            disk=disk,
            single_file=self.single_file,
        )
        with (
            LocalSource(self.source) as source,
            Staging.open(
                self.out,
                f"digest of {self.version}",
                disk,
                overwrite=self.overwrite,
                single_file=self.single_file,
            ) as staging,
        ):
            if not staging.published:
                self._write(source, staging)
            staging.commit()

    def _write(self, source: LocalSource, staging: Staging) -> None:
        names = (self.out.name,) if self.single_file else NAMES
        sizes = {name: self._write_shard(source, staging, name) for name in names}
        if not self.single_file:
            staging.put("config.json", self.version.encode())
            sizes["config.json"] = len(self.version)
            outputs = [{"name": name, "bytes": size} for name, size in sizes.items()]
            receipt = {"version": self.version, "outputs": outputs}
            staging.put("adaptool.json", json.dumps(receipt).encode())

    def _write_shard(self, source: LocalSource, staging: Staging, name: str) -> int:
        head, tail = shard(self.version, name, source.read(0, 10))
        size = len(head) + source.size + len(tail)
        sink = staging.sink(name, size)
        sink.write(size - len(tail), memoryview(tail))
        sink.copy_from(source, 0, len(head), source.size)
        sink.write(0, memoryview(head))
        staging.finished(sink)
        return size


@dataclass(frozen=True)
class Scenario:
    """Where a job starts from and what the file system offers."""

    old: bool = False
    staged: bool = False
    single_file: bool = False
    mounted: bool = False
    lacking: Mapping[str, object] = field(default_factory=dict)

    def disk(self, job: Job, plan: FaultPlan | None = None, *, flushes: bool = True) -> FaultyDisk:
        """A disk for the job."""
        mounted = job.out if self.mounted else None
        return FaultyDisk(plan, lacking=self.lacking, mounted=mounted, flushes=flushes)

    def prepare(self, room: Path) -> Job:
        """Inputs, the old output, and what an interrupted run left."""
        job = Job(room, single_file=self.single_file, overwrite=self.old)
        job.source.parent.mkdir(parents=True)
        job.home.mkdir()
        job.source.write_bytes(bytes(range(256)) * 20)
        if self.mounted:
            job.out.mkdir()
        if self.old:
            Job(room, version="old", single_file=self.single_file).run(self.disk(job))
        if self.staged:
            self._interrupt(job)
        return job

    def _interrupt(self, job: Job) -> None:
        disk = self.disk(job, FaultPlan(30, Fault.KILL))
        with pytest.raises(Killed):
            job.run(disk)
        disk.bury()


SCENARIOS = {
    "fresh": Scenario(),
    "overwrite": Scenario(old=True),
    "resume": Scenario(staged=True),
    "resume-overwrite": Scenario(old=True, staged=True),
    "two-step-swap": Scenario(old=True, lacking={"exchange": False}),
    "no-kernel-copy": Scenario(lacking={"copy_range": 0}),
    "no-exclusive-rename": Scenario(lacking={"rename_new": False}),
    "one-file": Scenario(single_file=True),
    "one-file-by-link": Scenario(single_file=True, lacking={"rename_new": False}),
    "one-file-by-rename": Scenario(single_file=True, lacking={"rename_new": False, "link": False}),
    "one-file-overwrite": Scenario(single_file=True, old=True),
}
IN_PLACE = {
    "mount-point": Scenario(mounted=True),
    "mount-point-overwrite": Scenario(mounted=True, old=True),
    "mount-point-resume": Scenario(mounted=True, staged=True),
}


def tree(path: Path) -> Tree | None:
    """All files below `path` with their bytes; None where nothing is there."""
    if path.is_file():
        return {"": path.read_bytes()}
    if not path.exists():
        return None
    files = (each for each in sorted(path.rglob("*")) if not each.is_dir())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


def published(out: Path) -> Tree | None:
    """What a reader of OUT sees; a staging directory inside does not count."""
    seen = tree(out)
    return seen and {name: body for name, body in seen.items() if not name.startswith(".adaptool")}


def inputs(job: Job) -> list[tuple[str, bytes, int, int]]:
    files = sorted(job.source.parent.iterdir())
    return [(f.name, f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_mode) for f in files]


def room(tmp_path: Path, number: int) -> Path:
    """A fresh directory."""
    path = tmp_path / str(number)
    path.mkdir()
    return path


def undisturbed(scenario: Scenario, path: Path) -> tuple[Tree | None, Tree | None, list[str]]:
    """The outputs before and after, and the operations between."""
    job = scenario.prepare(path)
    before = published(job.out)
    disk = scenario.disk(job)
    job.run(disk)
    disk.bury()
    return before or None, published(job.out), disk.operations


def struck(job: Job, disk: FaultyDisk) -> bool:
    """Run the job once; whether it failed."""
    try:
        job.run(disk)
    except STRUCK:
        return True
    finally:
        disk.bury()
    return False


def strays(job: Job, allowed: set[str]) -> set[str]:
    inside = {path.name for path in job.out.iterdir()} if job.out.is_dir() else set()
    hidden = {name for name in inside if name.startswith(".")}
    beside = {path.name for path in job.home.iterdir()}
    return (beside | hidden) - {job.out.name} - allowed


def run_again(scenario: Scenario, job: Job, new: Tree | None) -> None:
    """The same command again: it succeeds, or says that all had been done."""
    done = published(job.out) == new and not strays(job, set())
    disk = scenario.disk(job)
    # Between the last step and the end of the process nothing can tell the next run.
    says = pytest.raises(OutputError, match=r"exists|not empty") if done else nullcontext()
    with says if not job.overwrite else nullcontext():
        job.run(disk)
    disk.bury()
    assert published(job.out) == new
    assert not strays(job, set())


def whole(seen: Tree | None, old: Tree | None, new: Tree | None, scenario: Scenario) -> bool:
    """Whether OUT is absent where it may be, all old, or all new."""
    gone = seen is None and (old is None or bool(scenario.lacking))
    return gone or seen in (old, new)


def unmixed(seen: Tree | None, old: Tree | None, new: Tree | None) -> bool:
    """Whether OUT, if a loader would take it for a model, has the weights of one version."""
    if not seen or "config.json" not in seen:
        return True
    weights = {name: seen.get(name) for name in NAMES}
    versions = [side for side in (old, new) if side is not None]
    return any(weights == {name: side.get(name) for name in NAMES} for side in versions)


def campaign(
    scenario: Scenario,
    fault: Fault,
    tmp_path: Path,
    holds: Callable[[Tree | None, Tree | None, Tree | None], bool],
    *,
    flushes: bool = True,
) -> list[str]:
    """Strike every operation once; the trials whose OUT `holds` refuses."""
    old, new, operations = undisturbed(scenario, room(tmp_path, -1))
    violations = []
    for number, operation in enumerate(operations):
        job = scenario.prepare(room(tmp_path, number))
        before = inputs(job)
        failed = struck(job, scenario.disk(job, FaultPlan(number, fault), flushes=flushes))
        if not holds(published(job.out) or None, old, new):
            violations.append(f"{number} {operation}")
            continue
        assert strays(job, _ours(job)) == set()
        if failed:
            run_again(scenario, job, new)
        assert inputs(job) == before
        assert published(job.out) == new, f"{number} {operation}"
        assert not strays(job, set()), f"{number} {operation}"
        shutil.rmtree(job.room)
    return violations


def _ours(job: Job) -> set[str]:
    beside = {f".{job.out.name}.adaptool.lock", f".{job.out.name}.adaptool-partial"}
    return beside | {".adaptool.lock", ".adaptool-partial"}


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
CORE = {"fresh", "overwrite", "resume", "one-file", "mount-point-overwrite"}


def sorted_by_speed(scenarios: dict[str, Scenario]) -> list[Any]:
    """The names, all but the core marked as slow."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in CORE else slow) for name in scenarios]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", sorted_by_speed(SCENARIOS))
def test_a_fault_anywhere_leaves_out_absent_old_or_new(
    name: str, fault: Fault, tmp_path: Path
) -> None:
    """Whatever happens at any step, OUT is whole, and the next run completes it."""
    scenario = SCENARIOS[name]

    def holds(seen: Tree | None, old: Tree | None, new: Tree | None) -> bool:
        return whole(seen, old, new, scenario)

    assert campaign(scenario, fault, tmp_path, holds) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", sorted_by_speed(IN_PLACE))
def test_a_fault_in_a_mount_point_never_leaves_a_loadable_mixture(
    name: str, fault: Fault, tmp_path: Path
) -> None:
    """Where OUT cannot be renamed, no config stands beside weights of two versions."""
    assert campaign(IN_PLACE[name], fault, tmp_path, unmixed) == []


def test_the_campaign_sees_a_torn_output(tmp_path: Path) -> None:
    """Control: moving files one by one does tear OUT, and the strict rule finds it."""
    scenario = IN_PLACE["mount-point-overwrite"]

    def holds(seen: Tree | None, old: Tree | None, new: Tree | None) -> bool:
        return whole(seen, old, new, scenario)

    assert campaign(scenario, Fault.KILL, tmp_path, holds) != []


def test_the_campaign_sees_a_missing_fsync(tmp_path: Path) -> None:
    """Control: with an fsync that does nothing, a power cut publishes zeros, and it is found."""
    scenario = SCENARIOS["overwrite"]

    def holds(seen: Tree | None, old: Tree | None, new: Tree | None) -> bool:
        return whole(seen, old, new, scenario)

    assert campaign(scenario, Fault.POWER_CUT, tmp_path, holds, flushes=False) != []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the child runs no threads
@pytest.mark.parametrize(
    "name",
    ["overwrite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fresh", "resume"))],
)
def test_a_process_that_ends_anywhere_leaves_out_whole(name: str, tmp_path: Path) -> None:
    """As above with a real process that really ends, so that the kernel lets go of its locks."""
    scenario = SCENARIOS[name]
    old, new, operations = undisturbed(scenario, room(tmp_path, -1))
    for number in range(len(operations)):
        job = scenario.prepare(room(tmp_path, number))
        assert ends_at(scenario, job, number) == EXIT_STATUS
        assert whole(published(job.out), old, new, scenario)
        run_again(scenario, job, new)


def ends_at(scenario: Scenario, job: Job, number: int) -> int:
    """Run the job in a child that ends before the operation; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            job.run(scenario.disk(job, FaultPlan(number, Fault.EXIT)))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_resumed_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    """After a kill in the last file, the first two are compared and not written again."""
    scenario = SCENARIOS["fresh"]
    _, new, operations = undisturbed(scenario, room(tmp_path, -1))
    copies = [n for n, operation in enumerate(operations) if operation == "copy_range"]
    job = scenario.prepare(room(tmp_path, 0))
    assert struck(job, scenario.disk(job, FaultPlan(copies[-1], Fault.KILL)))
    written: list[str] = []
    job.run(Recording(written))
    assert published(job.out) == new
    assert not set(NAMES[:2]) & set(written)
    assert NAMES[2] in written


class Recording(Disk):
    """A disk that remembers into which files of the output it wrote."""

    def __init__(self, written: list[str]) -> None:
        self.written = written

    def pwrite(self, file: OpenFile, chunk: memoryview, offset: int) -> int:
        """Note, then write."""
        self.written += [name for name in NAMES if str(file.path).endswith(name)]
        return super().pwrite(file, chunk, offset)
