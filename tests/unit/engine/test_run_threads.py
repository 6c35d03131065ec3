"""Workers are waited for, whatever interrupts the waiting."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from adaptool.dtypes import DTYPES
from adaptool.engine.run import run
from adaptool.engine.tiles import CopyJob
from adaptool.model.options import Machine, Precision
from adaptool.model.plan import OutputFile, Plan, Row
from adaptool.store.tensors import TensorRef


def is_waiting() -> bool:
    """Whether the main thread waits for workers, no longer for one of them to start."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]  # noqa: SLF001 - no other way
    names = set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return "_wait_for_tstate_lock" in names or {"wait_for", "wait"} <= names


class Nothing:
    """A source that is never read."""

    name, size = "nothing", 8

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Never."""
        raise AssertionError(offset, len(buffer))

    def close(self) -> None:
        """Nothing."""


class Slow:
    """An outlet whose one copy interrupts the main thread, then takes until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.done = False

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Nothing is computed."""
        raise AssertionError(row, start, content)

    def copy(self, job: CopyJob) -> None:
        """Interrupt, and be busy."""
        assert job.length == 8
        while not is_waiting():
            self.go.wait(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        assert self.go.wait(60)
        self.done = True


@contextmanager
def interrupted_by(outlet: Slow) -> Iterator[None]:
    """The signal raises, and only then may the copy end: a little after waiting began again."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        threading.Timer(0.3, outlet.go.set).start()
        raise KeyboardInterrupt(number, frame)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_interrupted_run_waits_for_what_is_still_at_work() -> None:
    """A worker that goes on after the run has raised would be torn out of torch at the exit."""
    ref = TensorRef("t", DTYPES["U8"], (8,), 0, 8, Nothing())
    row = Row("t", ref.dtype, ref.shape, "f", 0, 8, ref)
    plan = Plan((row,), (OutputFile("f", b"", 8),), (), Precision.FLOAT64)
    outlet = Slow()
    with interrupted_by(outlet), pytest.raises(KeyboardInterrupt):
        run(plan, outlet, Machine("cpu", 1))
    assert outlet.done
