"""Runs a plan's jobs on worker threads, copies first while torch is still being imported."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from adaptool.engine.admission import admitted
from adaptool.engine.arithmetic import Arithmetic, arithmetic, available_cores
from adaptool.engine.outlets import Outlet
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


class _Workers:
    """The shared state of one run: the jobs left, the first error, the progress."""

    def __init__(self, plan: Plan, outlet: Outlet, progress: Progress | None) -> None:
        self._plan, self._outlet, self._progress = plan, outlet, progress
        self._copies: deque[CopyJob] = deque(copy_jobs(plan.rows))
        self._fills: deque[FillJob | RecodeJob] = deque()
        self._changed = threading.Condition()
        self._ready = False
        self.error: BaseException | None = None
        self._stop = False
        self._done = 0
        self._total = sum(row.length for row in plan.rows)
        self._work: dict[str, _RowWork] = {}
        self._fits: tuple[Arithmetic, FactorStore, Sampling] | None = None

    def start_computing(
        self,
        fits: Arithmetic,
        factors: FactorStore,
        sampling: Sampling,
        jobs: Sequence[FillJob | RecodeJob],
    ) -> None:
        """torch is there: the computing jobs may be taken."""
        for job in jobs:
            self._work.setdefault(job.row.name, _RowWork(0)).jobs += 1
        with self._changed:
            self._fits = (fits, factors, sampling)
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

    def _lane(self) -> Lane:
        from adaptool.engine.lane import Lane

        fits, _, sampling = cast("tuple[Arithmetic, FactorStore, Sampling]", self._fits)
        return Lane(fits, sampling)

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

        _, _, sampling = cast("tuple[Arithmetic, FactorStore, Sampling]", self._fits)
        recode(job, lane, updates, self._outlet, sampling)

    def _updates(self, row: Row, lane: Lane) -> list[Prepared]:
        from adaptool.engine.updates import prepared_updates

        fits, factors, _ = cast("tuple[Arithmetic, FactorStore, Sampling]", self._fits)
        return prepared_updates(row, lane, factors, exact=fits.exact)

    def _count(self, length: int) -> None:
        with self._changed:
            self._done += length
            if self._progress is not None:
                self._progress(self._done, self._total)


def run(
    plan: Plan,
    outlet: Outlet,
    machine: Machine,
    *,
    progress: Progress | None = None,
    tile_elements: int = TILE_ELEMENTS,
) -> Outcome:
    """Fill every seat of the plan; raises the first worker's error.

    ResourceError where a tensor that is needed whole does not fit the memory.

    The result's bytes do not depend on `machine` or `tile_elements`.
    """
    workers = _Workers(plan, outlet, progress)
    threads = admitted([row.computed for row in plan.rows], machine.threads or available_cores())
    first = [
        threading.Thread(target=workers.loop, name=f"adaptool-{place}", daemon=True)
        for place in range(threads)
    ]
    _read_ahead(plan)
    for thread in first:
        thread.start()
    try:
        outcome = _compute(plan, workers, machine, tile_elements)
        _join(first)
    except BaseException:
        workers.stop()
        _join(first)
        raise
    if workers.error is not None:
        raise workers.error
    return outcome()


def _compute(
    plan: Plan, workers: _Workers, machine: Machine, tile_elements: int
) -> Callable[[], Outcome]:
    """Import torch (the copies are running meanwhile) and hand out the computing jobs."""
    if all(row.is_copy for row in plan.rows):
        workers.start_copying()
        return lambda: Outcome("cpu", MergeStats(None, None))
    from adaptool.engine.factors import FactorStore
    from adaptool.engine.sampling import Sampling

    fits = arithmetic(machine, plan.precision, tile_elements)
    sampling = Sampling()
    # A recoded weight is one job, however large: the long ones first.
    jobs: list[FillJob | RecodeJob] = [*recode_jobs(plan.rows)]
    jobs += fill_jobs(plan.rows, fits.tile_elements)
    workers.start_computing(fits, FactorStore(fits), sampling, jobs)
    return lambda: Outcome(str(fits.device), sampling.stats(plan.rows))


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


def _join(threads: Sequence[threading.Thread]) -> None:
    """Wait in short steps, so that a signal reaches the main thread at once."""
    for thread in threads:
        while thread.is_alive():
            thread.join(POLL_SECONDS)


def _read_ahead(plan: Plan) -> None:
    """Ask the kernel for the first bytes of what will be computed."""
    left = READ_AHEAD_BYTES
    for row in plan.rows:
        advise = getattr(row.source.source, "advise", None)
        if row.is_copy or advise is None:
            continue
        advise(row.source.offset, row.source.length)
        left -= row.source.length
        if left <= 0:
            return
