"""Work in threads that nobody has to wait for.

The interpreter waits at its end for the threads of its own executors, however long a network is
silent. These are left to themselves: a request that is under way cannot be interrupted, and what
it brings nobody asks for any more.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_Queue = SimpleQueue[tuple[Callable[[], T], Future[T]] | None]


class Errands(Generic[T]):
    """Threads that do what they are sent for, first come, first served.

    Leaving the `with` block cancels what has not begun, and does not wait for what has.
    """

    __slots__ = ("_queue", "_sent", "_threads")

    def __init__(self, name: str, threads: int = 1) -> None:
        """`name` is what the threads are called; they start with the first errand."""
        self._queue: _Queue[T] = SimpleQueue()
        self._sent: list[Future[T]] = []
        self._threads = [
            Thread(target=partial(_carry, self._queue), name=f"{name}-{place}", daemon=True)
            for place in range(threads)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not begun; the threads end when they are done with what has."""
        for outcome in self._sent:
            outcome.cancel()
        for _ in self._threads:
            self._queue.put(None)

    def send(self, work: Callable[[], T]) -> Future[T]:
        """`work` in its turn; the future has what it gives or raises."""
        if not self._sent:
            for thread in self._threads:
                thread.start()
        outcome = Future[T]()
        self._sent.append(outcome)
        self._queue.put((work, outcome))
        return outcome


def _carry(queue: _Queue[T]) -> None:
    """One thread: errand by errand, until there is no further one."""
    while (errand := queue.get()) is not None:
        work, outcome = errand
        if outcome.set_running_or_notify_cancel():
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to who waits for it
                outcome.set_exception(error)
