"""Where the file system's locks always succeed, no run publishes under another's receipt.

Two runs with different plans want one OUT. Whatever the second does while the first stands still
at any of its steps, OUT is afterwards one of both, whole.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import pytest

from adaptool.errors import AdaptoolError, BusyError
from adaptool.store import claim as claims
from adaptool.store.claim import Claim, claim_at
from adaptool.store.disk import Disk, Flock
from adaptool.store.lock import OutputLock
from adaptool.store.staging import Staging
from faulty_disk import EXIT_STATUS, UNCOUNTED, Fault, FaultPlan, FaultyDisk

Result = TypeVar("Result")
NAMES = ("model-1.safetensors", "sub/model-2.safetensors", "config.json", "adaptool.json")
NO_LOCKS = {"flock": Flock.TAKEN}
Tree = dict[str, bytes]
EVERY = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])


def contents(version: str) -> Tree:
    """What a run writes: of the same names and sizes, whatever its plan."""
    outputs = [f'{{"name": "{name}", "bytes": {len(version) * 300}}}' for name in NAMES[:3]]
    receipt = f'{{"plan": "{version}", "outputs": [{", ".join(outputs)}]}}'
    return {**dict.fromkeys(NAMES[:3], version.encode() * 300), NAMES[3]: receipt.encode()}


def run(out: Path, version: str, disk: Disk) -> None:
    """Write OUT as an operation does."""
    with Staging.open(out, f"plan of {version}", disk, overwrite=True) as staging:
        if not staging.published:
            for name, body in contents(version).items():
                sink = staging.sink(name, len(body))
                sink.write(0, memoryview(body))
                staging.finished(sink)
        staging.commit()


class Interrupted(FaultyDisk):
    """A disk without locks that does something else before one of its operations."""

    __slots__ = ("at", "meanwhile", "seen")

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        super().__init__(lacking=NO_LOCKS)
        self.at = at
        self.meanwhile = meanwhile
        self.seen = 0

    def perform(self, operation: str, call: Callable[..., Result], *arguments: Any) -> Any:
        """Count, and let the others work at the chosen step."""
        if operation not in UNCOUNTED:
            self.seen += 1
            if self.seen == self.at:
                self.meanwhile()
        return super().perform(operation, call, *arguments)


def tree(out: Path) -> Tree:
    """Every file of OUT with its bytes."""
    names = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if name[:4] != ".ada"}


def steps(folder: Path, *, mounted: bool = False) -> int:
    """How many operations an undisturbed run has."""
    disk = Interrupted(-1, lambda: None)
    disk.mounted = folder / "out" if mounted else None
    (folder / "out" if mounted else folder).mkdir(parents=True)
    run(folder / "out", "one", disk)
    return disk.seen


def attempted(out: Path, version: str, disk: Disk) -> AdaptoolError | None:
    """The error of a run, if any."""
    try:
        run(out, version, disk)
    except AdaptoolError as error:
        return error
    return None


@EVERY
def test_a_run_that_is_taken_over_anywhere_publishes_nothing_of_its_own(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the claim fails, too: the second run holds the first for gone while it lives."""
    monkeypatch.setattr("adaptool.store.lock.is_gone", lambda *_, **__: True)
    whole = [contents(version) for version in ("one", "two")]
    for at in sampled(steps(tmp_path / "count"), every):
        out = tmp_path / str(at) / "out"
        out.parent.mkdir(parents=True)
        errors = interleaved(out, at)
        assert tree(out) in whole, at
        for version, body in zip(("one", "two"), whole, strict=True):
            others = [error for each, error in errors.items() if each != version]
            assert errors[version] is not None or tree(out) == body or others == [None], at
        run(out, "two", FaultyDisk(lacking=NO_LOCKS))
        assert tree(out) == whole[1], at
        shutil.rmtree(out.parent)


@EVERY
def test_in_place_no_configs_stand_beside_weights_of_the_other_run(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files move one by one there: a run that is taken over in between may leave too few."""
    monkeypatch.setattr("adaptool.store.lock.is_gone", lambda *_, **__: True)
    whole = [contents(version) for version in ("one", "two")]
    for at in sampled(steps(tmp_path / "count", mounted=True), every):
        out = tmp_path / str(at) / "out"
        out.mkdir(parents=True)
        interleaved(out, at, mounted=True)
        assert any(tree(out).items() <= version.items() for version in whole), at
        run(out, "two", FaultyDisk(lacking=NO_LOCKS, mounted=out))
        assert tree(out) == whole[1], at
        shutil.rmtree(out.parent)


@pytest.mark.parametrize("every", [5, pytest.param(2, marks=pytest.mark.slow)])
def test_two_runs_that_both_go_on_never_write_one_file(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second takes over and stands still in turn; the first goes on, then the second."""
    monkeypatch.setattr("adaptool.store.lock.is_gone", lambda *_, **__: True)
    whole = [contents(version) for version in ("one", "two")]
    count = steps(tmp_path / "count")
    for at in sampled(count, 2 * every):
        for until in sampled(count, 5 * every):
            out = tmp_path / f"{at}-{until}" / "out"
            out.parent.mkdir()
            both_going_on(out, at, until)
            assert tree(out) in whole or not out.exists(), (at, until)
            shutil.rmtree(out.parent)


def both_going_on(out: Path, at: int, until: int) -> None:
    """The first stops before step `at` for the second's steps up to `until`, then ends."""
    stands, goes_on = Event(), Event()

    def pause() -> None:
        stands.set()
        goes_on.wait()

    def work() -> None:
        attempted(out, "two", Interrupted(until, pause))
        stands.set()

    second = Thread(target=work)

    def meanwhile() -> None:
        second.start()
        stands.wait()

    attempted(out, "one", Interrupted(at, meanwhile))
    goes_on.set()
    if second.ident is not None:
        second.join()


def sampled(count: int, every: int) -> list[int]:
    """Some of the steps, the last one among them."""
    return [*range(1, count, every), count]


def interleaved(out: Path, at: int, *, mounted: bool = False) -> dict[str, AdaptoolError | None]:
    """The second run, whole, before step `at` of the first; the errors of both."""
    errors: dict[str, AdaptoolError | None] = {"two": None}
    point = out if mounted else None
    second = FaultyDisk(lacking=NO_LOCKS, mounted=point)

    def meanwhile() -> None:
        errors["two"] = attempted(out, "two", second)

    first = Interrupted(at, meanwhile)
    first.mounted = point
    errors["one"] = attempted(out, "one", first)
    return errors


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@EVERY
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the child needs none of our threads
def test_another_process_finds_the_output_busy_at_any_step(every: int, tmp_path: Path) -> None:
    """The first one goes on when the second has given up, and its output is its own."""
    for at in sampled(steps(tmp_path / "count"), every):
        out = tmp_path / str(at) / "out"
        out.parent.mkdir()
        statuses: list[int] = []

        def second(out: Path = out, statuses: list[int] = statuses) -> None:
            child = _forked(lambda: run(out, "two", FaultyDisk(lacking=NO_LOCKS)))
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        run(out, "one", Interrupted(at, second))
        # Before the first step and after the last one there is nobody in its way.
        versions = [contents(version) for version in ("one", "two")]
        assert tree(out) == versions[0] or statuses == [0], at
        assert tree(out) in versions, at
        assert sorted(path.name for path in out.parent.iterdir()) == ["out"], at


@EVERY
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("short_watch")
def test_the_claim_of_a_killed_process_is_taken_over(every: int, tmp_path: Path) -> None:
    """Its pid is gone: the next run, of the same plan or another, needs no help."""
    for at in sampled(steps(tmp_path / "count"), every):
        for version in ("one", "two"):
            out = tmp_path / f"{at}-{version}" / "out"
            out.parent.mkdir()
            dying = FaultyDisk(FaultPlan(at - 1, Fault.EXIT), lacking=NO_LOCKS)
            child = _forked(lambda out=out, dying=dying: run(out, "one", dying))  # type: ignore[misc]
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_STATUS
            age(out.with_name(".out.adaptool.lock"))  # where it died before it could say who it is
            run(out, version, FaultyDisk(lacking=NO_LOCKS))
            assert tree(out) == contents(version), at
            assert sorted(path.name for path in out.parent.iterdir()) == ["out"], at


def age(lock: Path) -> None:
    """Let an empty lock file be of long ago."""
    if lock.exists() and claim_at(lock) is None:
        os.utime(lock, (1, 1))


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are renewed 50 times a second."""
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.02)


@pytest.fixture
def short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the wait is short: a thread that renews would count as a step."""
    monkeypatch.setattr(claims, "_WATCHED_RENEWALS", 0.002)


def elsewhere(path: Path, seconds: float) -> Claim:
    """The claim of a process of another machine, renewed `seconds` ago."""
    claim = replace(Claim.of_this_process("plan"), place="elsewhere", host="node7", pid=1)
    path.write_bytes(claim.encoded())
    os.utime(path, (time.time() - seconds,) * 2)
    return claim


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("lacking", [{}, NO_LOCKS], ids=["locks", "no-locks"])
def test_a_claim_of_another_machine_holds_as_long_as_it_is_renewed(
    lacking: dict[str, object], tmp_path: Path
) -> None:
    """A lock that this machine grants proves nothing about the others."""
    path = tmp_path / "lock"
    elsewhere(path, 5)
    with pytest.raises(BusyError, match="on node7"):
        OutputLock.acquire(path, FaultyDisk(lacking=lacking))
    elsewhere(path, 1000)
    lock = OutputLock.acquire(path, FaultyDisk(lacking=lacking))
    lock.check()
    lock.release()
    assert not path.exists()


@pytest.mark.usefixtures("short_lease")
def test_a_clock_that_is_off_takes_no_claim_that_is_renewed(tmp_path: Path) -> None:
    """Its times look old here, but they change."""
    path = tmp_path / "lock"
    elsewhere(path, 1000)

    def renew() -> None:
        time.sleep(0.02)
        os.utime(path, (time.time() - 900,) * 2)

    holder = Thread(target=renew)
    holder.start()
    with pytest.raises(BusyError):
        OutputLock.acquire(path, FaultyDisk(lacking=NO_LOCKS))
    holder.join()


@pytest.mark.usefixtures("short_lease")
def test_a_holder_renews_its_claim_and_sees_that_it_lost_it(tmp_path: Path) -> None:
    """It touches the file; whoever writes another claim there is told apart by the nonce."""
    path = tmp_path / "lock"
    lock = OutputLock.acquire(path, Disk())
    os.utime(path, (1, 1))
    for _ in range(200):
        if os.lstat(path).st_mtime > 1:
            break
        time.sleep(0.02)
    assert os.lstat(path).st_mtime > 1
    elsewhere(path, 0)
    with pytest.raises(BusyError, match="on node7"):
        lock.check()
    lock.release()
    assert path.exists()


def test_a_number_that_another_process_has_now_proves_nothing(tmp_path: Path) -> None:
    """The claim says when its process began."""
    path = tmp_path / "lock"
    path.write_bytes(replace(Claim.of_this_process("plan"), started="1").encoded())
    OutputLock.acquire(path, FaultyDisk(lacking=NO_LOCKS)).release()
    path.write_bytes(Claim.of_this_process("plan").encoded())
    with pytest.raises(BusyError, match=f"process {os.getpid()} is"):
        OutputLock.acquire(path, FaultyDisk(lacking=NO_LOCKS))
