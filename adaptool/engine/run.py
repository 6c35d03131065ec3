"""Runs a plan's jobs on worker threads, copies first while torch is still being imported."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

from adaptool.engine.admission import admitted
from adaptool.engine.arithmetic import Arithmetic, arithmetic, available_cores
from adaptool.engine.outlets import Outlet
from adaptool.engine.stretches import Visitors, stretches
from adaptool.engine.tiles import (
    TILE_ELEMENTS,
    CopyJob,
    FillJob,
    RecodeJob,
    copy_jobs,
    fill_jobs,
    recode_jobs,
)
from adaptool.model.options import Machine
from adaptool.model.plan import Plan, Row
from adaptool.model.results import MergeStats
from adaptool.store.source import Source

if TYPE_CHECKING:
    from adaptool.engine.factors import FactorStore
    from adaptool.engine.lane import Lane, Prepared
    from adaptool.engine.sampling import Sampling

Progress = Callable[[int, int], None]
POLL_SECONDS = 0.1
READ_AHEAD_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: where it computed and what the samples say."""

    device: str
    stats: MergeStats


@dataclass(slots=True)
class _RowWork:
    """A row's updates, made by the first worker that needs them, dropped by the last."""

    jobs: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    updates: list[Prepared] | None = None


@dataclass(frozen=True, slots=True)
class _Computing:
    """What computing takes; made once, since it imports torch."""

    fits: Arithmetic
    factors: FactorStore
    sampling: Sampling


class _Count:
    """Bytes that are in their seats, of all that a run fills."""

    def __init__(self, rows: Sequence[Row], progress: Progress | None) -> None:
        self._total = sum(row.length for row in rows)
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, length: int) -> None:
        with self._lock:
            self._done += length
            if self._progress is not None:
                self._progress(self._done, self._total)


class _Workers:
    """The shared state of one stretch: the jobs left, the first error."""

    def __init__(self, rows: Sequence[Row], outlet: Outlet, count: _Count) -> None:
        self._outlet, self._count = outlet, count
        self._copies: deque[CopyJob] = deque(copy_jobs(rows))
        self._fills: deque[FillJob | RecodeJob] = deque()
        self._changed = threading.Condition()
        self._ready = False
        self.error: BaseException | None = None
        self._stop = False
        self._ended: set[str] = set()
        self._work: dict[str, _RowWork] = {}
        self._computing: _Computing | None = None

    def start_computing(self, computing: _Computing, jobs: Sequence[FillJob | RecodeJob]) -> None:
        """torch is there: the computing jobs may be taken."""
        for job in jobs:
            self._work.setdefault(job.row.name, _RowWork(0)).jobs += 1
        with self._changed:
            self._computing = computing
            self._fills.extend(jobs)
            self._ready = True
            self._changed.notify_all()

    def start_copying(self) -> None:
        """There is nothing to compute: the copies are all."""
        with self._changed:
            self._ready = True
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """No further job is taken; the first error is kept."""
        with self._changed:
            self.error = self.error or error
            self._stop = True
            self._changed.notify_all()

    def _next(self) -> CopyJob | FillJob | RecodeJob | None:
        with self._changed:
            while not self._stop:
                if self._fills:
                    return self._fills.popleft()
                if self._copies:
                    return self._copies.popleft()
                if self._ready:
                    return None
                self._changed.wait()
            return None

    def loop(self) -> None:
        """One worker: jobs until none is left; an error stops all workers."""
        lane: Lane | None = None
        try:
            while (job := self._next()) is not None:
                if isinstance(job, CopyJob):
                    self._outlet.copy(job)
                    forget(job.source)
                    self._count(job.length)
                else:
                    lane = lane or self._lane()
                    self._fill(job, lane)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self.stop(error)
        finally:
            del lane
            with self._changed:
                self._ended.add(threading.current_thread().name)
                self._changed.notify_all()

    def wait_for(self, threads: Sequence[threading.Thread]) -> None:
        """Wait until every thread that was started has left its loop.

        In short steps, so that a signal reaches the main thread at once. `Thread.join` will not
        do: interrupted, it takes a thread that still computes for ended (CPython 3.11), and the
        interpreter's end then tears that thread out of torch, which aborts.
        """
        with self._changed:
            while {each.name for each in threads if each.ident is not None} - self._ended:
                self._changed.wait(POLL_SECONDS)

    def _lane(self) -> Lane:
        from adaptool.engine.lane import Lane

        computing = cast("_Computing", self._computing)
        return Lane(computing.fits, computing.sampling)

    def _fill(self, job: FillJob | RecodeJob, lane: Lane) -> None:
        work = self._work[job.row.name]
        with work.lock:
            if work.updates is None:
                work.updates = self._updates(job.row, lane)
        if isinstance(job, RecodeJob):
            self._recode(job, lane, work.updates)
        else:
            lane.run(job, work.updates, self._outlet)
        with work.lock:
            work.jobs -= 1
            if not work.jobs:
                work.updates = None
                forget(job.row.source.source)
        self._count(_bytes(job))

    def _recode(self, job: RecodeJob, lane: Lane, updates: list[Prepared]) -> None:
        from adaptool.engine.recoding import recode

        recode(job, lane, updates, self._outlet, cast("_Computing", self._computing).sampling)

    def _updates(self, row: Row, lane: Lane) -> list[Prepared]:
        from adaptool.engine.updates import prepared_updates

        computing = cast("_Computing", self._computing)
        return prepared_updates(row, lane, computing.factors, exact=computing.fits.exact)


def run(
    plan: Plan,
    outlet: Outlet,
    machine: Machine,
    *,
    progress: Progress | None = None,
    tile_elements: int = TILE_ELEMENTS,
    hands_over: bool = False,
    opening: Callable[[Sequence[str]], None] | None = None,
) -> Outcome:
    """Fill every seat of the plan; raises the first worker's error.

    `opening` is told the files that are filled next; with `hands_over` that is one after the
    other. ResourceError where a tensor that is needed whole does not fit the memory.

    The result's bytes do not depend on `machine` or `tile_elements`.
    """
    count = _Count(plan.rows, progress)
    computing: _Computing | None = None
    parts = stretches(plan, hands_over=hands_over)
    with Visitors(parts) as visitors:
        for place, stretch in enumerate(parts):
            if opening is not None:
                opening(stretch.opens)
            visitors.bring(place)
            made = partial(_computing, plan, machine, tile_elements, computing)
            computing = _filled(stretch.rows, outlet, machine, count, made)
    if computing is None:
        return Outcome("cpu", MergeStats(None, None))
    return Outcome(str(computing.fits.device), computing.sampling.stats(plan.rows))


def _filled(
    rows: Sequence[Row],
    outlet: Outlet,
    machine: Machine,
    count: _Count,
    computing: Callable[[Sequence[Row]], _Computing | None],
) -> _Computing | None:
    """Fill these rows; torch is imported while the copies are running."""
    workers = _Workers(rows, outlet, count)
    threads = admitted([row.computed for row in rows], machine.threads or available_cores())
    started = [
        threading.Thread(target=workers.loop, name=f"adaptool-{place}", daemon=True)
        for place in range(threads)
    ]
    _read_ahead(rows)
    try:
        for thread in started:
            thread.start()
        made = computing(rows)
        _hand_out(workers, rows, made)
        workers.wait_for(started)
    except BaseException:
        workers.stop()
        workers.wait_for(started)
        raise
    if workers.error is not None:
        raise workers.error
    return made


def _computing(
    plan: Plan,
    machine: Machine,
    tile_elements: int,
    made: _Computing | None,
    rows: Sequence[Row],
) -> _Computing | None:
    """What `rows` are computed with: what was made before, None where all are copies."""
    if made is not None or all(row.is_copy for row in rows):
        return made
    from adaptool.engine.factors import FactorStore
    from adaptool.engine.sampling import Sampling

    fits = arithmetic(machine, plan.precision, tile_elements)
    return _Computing(fits, FactorStore(fits), Sampling())


def _hand_out(workers: _Workers, rows: Sequence[Row], computing: _Computing | None) -> None:
    if computing is None:
        workers.start_copying()
        return
    # A recoded weight is one job, however large: the long ones first.
    jobs: list[FillJob | RecodeJob] = [*recode_jobs(rows)]
    jobs += fill_jobs(rows, computing.fits.tile_elements)
    workers.start_computing(computing, jobs)


def _bytes(job: FillJob | RecodeJob) -> int:
    """What a job writes."""
    if isinstance(job, RecodeJob):
        return job.length
    rows, _ = job.row.matrix
    return job.row.length * (job.stop - job.start) // max(1, rows)


def forget(source: Source) -> None:
    """A source that keeps something for its next reader may let it go."""
    let_go = getattr(source, "forget", None)
    if let_go is not None:
        let_go()


def _read_ahead(rows: Sequence[Row]) -> None:
    """Ask the kernel for the first bytes of what will be computed."""
    left = READ_AHEAD_BYTES
    for row in rows:
        advise = getattr(row.source.source, "advise", None)
        if row.is_copy or advise is None:
            continue
        advise(row.source.offset, row.source.length)
        left -= row.source.length
        if left <= 0:
            return
