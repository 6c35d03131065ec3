"""SIGINT and SIGTERM unwind the stack, so that what is open gets closed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaptool.errors import Interrupted

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_IMPORTING = "<frozen importlib._bootstrap>"
_RETRY_SECONDS = 0.05
HINT = "run the same command again; it goes on where it stopped, if it had begun to write"


def _leave_now(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:
    # The second signal means it: no clean-up is waited for.
    for stopping in _STOPPING:
        signal.signal(stopping, _leave_now)
    _interrupt(number, frame)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        # Not an AdaptoolError yet: those are gathered and reported as findings where inputs are
        # checked, and a signal must get past all of that.
        raise KeyboardInterrupt(number)
    # torch swallows what interrupts it while it imports numpy, and goes on with half of numpy.
    signal.signal(signal.SIGALRM, lambda _, later: _interrupt(number, later))
    signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def interruption(number: int) -> Interrupted:
    """The error that reports signal `number`."""
    return Interrupted(number, f"stopped by {signal.Signals(number).name}", hint=HINT)


@contextmanager
def stopped_cleanly() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM unwind the stack and the second end the process at once.

    Where the first arrives in the middle of an import, it waits for the import's end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    alarm = signal.getsignal(signal.SIGALRM)
    for number, handler in before.items():
        # A shell starts background jobs with SIGINT ignored; that stays so.
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is not alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        for number, handler in before.items():
            signal.signal(number, handler)
