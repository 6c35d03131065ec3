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
HINT = "run the same command again; a merge goes on where it stopped"


def _leave_now(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _stop(number: int, _: FrameType | None) -> None:
    # The second signal means it: no clean-up is waited for.
    for stopping in _STOPPING:
        signal.signal(stopping, _leave_now)
    # Not an AdaptoolError yet: those are gathered and reported as findings where inputs are
    # checked, and a signal must get past all of that.
    raise KeyboardInterrupt(number)


def interruption(number: int) -> Interrupted:
    """The error that reports signal `number`."""
    return Interrupted(number, f"stopped by {signal.Signals(number).name}", hint=HINT)


@contextmanager
def stopped_cleanly() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM unwind the stack and the second end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, handler in before.items():
        # A shell starts background jobs with SIGINT ignored; that stays so.
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
