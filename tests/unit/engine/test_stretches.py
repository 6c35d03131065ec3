"""How a plan is cut so that only a part of it must be here at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from adaptool.dtypes import DTYPES
from adaptool.engine.run import run
from adaptool.engine.stretches import stretches
from adaptool.engine.tiles import CopyJob
from adaptool.model.options import Machine, Precision
from adaptool.model.plan import OutputFile, Plan, Row
from adaptool.store.tensors import TensorRef

SIZE = 64


@dataclass(eq=False)
class Shard:
    """A source that is here only between `arrive` and `leave`; counts how many are at once."""

    name: str
    log: list[str]
    size: int = 1 << 20
    here: bool = False
    fault: Exception | None = None

    def arrive(self) -> None:
        """Comes."""
        if self.fault is not None:
            raise self.fault
        self.here = True
        self.log.append(f"+{self.name}")

    def leave(self) -> None:
        """Goes."""
        if self.here:
            self.log.append(f"-{self.name}")
        self.here = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Only while it is here."""
        assert self.here, f"{self.name} was read at {offset} while it was away"
        buffer[:] = bytes(len(buffer))

    def close(self) -> None:
        """Nothing."""


@dataclass
class Reading:
    """An outlet that reads what is copied."""

    read: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Nothing is computed here."""
        raise AssertionError(row.name, start, len(content))

    def copy(self, job: CopyJob) -> None:
        """Read it all."""
        job.source.read_into(job.source_offset, memoryview(bytearray(job.length)))
        with self.lock:
            self.read += [row.name for row in job.rows]


def _plan(seats: Sequence[tuple[str, str, Shard]]) -> Plan:
    """Copies: (tensor, output file, source)."""
    rows, filled = [], dict[str, int]()
    for name, file, source in seats:
        ref = TensorRef(name, DTYPES["U8"], (SIZE,), len(rows) * SIZE, SIZE, source)
        at = filled.get(file, 0)
        rows.append(Row(name, ref.dtype, ref.shape, file, at, SIZE, ref))
        filled[file] = at + SIZE
    files = tuple(OutputFile(name, b"", size) for name, size in filled.items())
    return Plan(tuple(rows), files, (), Precision.FLOAT64)


def _run(plan: Plan, *, hands_over: bool = False) -> tuple[Reading, list[tuple[str, ...]]]:
    outlet, opened = Reading(), list[tuple[str, ...]]()
    run(
        plan,
        outlet,
        Machine("cpu", 2),
        hands_over=hands_over,
        opening=lambda names: opened.append(tuple(names)),
    )
    return outlet, opened


def test_no_more_than_two_visiting_sources_are_here_at_once() -> None:
    """The one that is read, and the next."""
    log: list[str] = []
    shards = [Shard(f"s{place}", log) for place in range(5)]
    plan = _plan([(f"t{n}", f"f{n // 3}", shards[n // 3]) for n in range(15)])
    outlet, _ = _run(plan)
    assert sorted(outlet.read) == sorted(row.name for row in plan.rows)
    here = most = 0
    for event in log:
        here += 1 if event[0] == "+" else -1
        most = max(most, here)
    assert (most, here) == (2, 0)
    assert sorted(log) == sorted([f"+s{n}" for n in range(5)] + [f"-s{n}" for n in range(5)])


def test_a_source_that_a_later_row_needs_stays() -> None:
    """It is not brought twice."""
    log: list[str] = []
    one, two = Shard("one", log), Shard("two", log)
    _run(_plan([("a", "f", one), ("b", "f", two), ("c", "f", one)]))
    assert log.count("+one") == log.count("+two") == 1


def test_files_are_opened_one_by_one_where_finished_ones_leave() -> None:
    """In the plan's order, each once, those without rows too."""
    log: list[str] = []
    here = Shard("s", log, here=True)
    plan = _plan([(f"t{n}", f"f{n // 2}", here) for n in range(6)])
    files = (*plan.files[:1], OutputFile("empty", b"", 0), *plan.files[1:])
    plan = Plan(plan.rows, files, (), plan.precision)
    _, opened = _run(plan, hands_over=True)
    assert opened == [("f0",), ("empty", "f1"), ("f2",)]


def test_rows_of_local_files_are_one_stretch() -> None:
    """Nothing waits for nothing."""

    class Local(Shard):
        arrive = leave = None  # type: ignore[assignment]

    plan = _plan([(f"t{n}", f"f{n}", Local("s", [], here=True)) for n in range(4)])
    (whole,) = stretches(plan)
    assert whole.rows == plan.rows
    assert whole.opens == ("f0", "f1", "f2", "f3")


def test_an_arrival_that_fails_ends_the_run_with_its_error() -> None:
    """And the others leave."""
    log: list[str] = []
    first, second = Shard("one", log), Shard("two", log, fault=KeyError("gone"))
    with pytest.raises(KeyError, match="gone"):
        _run(_plan([("a", "f", first), ("b", "f", second)]))
    assert log == ["+one", "-one"]
