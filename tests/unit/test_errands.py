"""Work in threads that nobody has to wait for."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from adaptool.errands import Errands
from command_line import ROOT


def test_errands_give_what_their_work_gives_or_raises() -> None:
    """Each in its own future, with a signal's kind of error, too."""

    def fails() -> int:
        raise KeyboardInterrupt

    with Errands[int]("test", 3) as errands:
        outcomes = [errands.send(lambda n=n: n * n) for n in range(20)]  # type: ignore[misc]
        failed = errands.send(fails)
        assert [each.result() for each in outcomes] == [n * n for n in range(20)]
        with pytest.raises(KeyboardInterrupt):
            failed.result()
        assert errands.send(lambda: 7).result() == 7


def test_leaving_cancels_what_has_not_begun_and_waits_for_nothing() -> None:
    """One thread is held: what stands behind it is never done."""
    begun, held, done = threading.Event(), threading.Event(), list[int]()
    with Errands[None]("test") as errands:
        first = errands.send(lambda: (begun.set(), held.wait(), done.append(1))[-1])
        second = errands.send(lambda: done.append(2))
        assert begun.wait(60)
    assert not first.done()
    with pytest.raises(CancelledError):
        second.result()
    held.set()
    first.result(60)
    assert done == [1]


def test_process_ends_while_an_errand_is_still_under_way() -> None:
    """The interpreter would wait for an executor's thread, here for ever."""
    script = (
        "import threading; from adaptool.errands import Errands\n"
        "with Errands('test') as errands:\n"
        "    begun = threading.Event()\n"
        "    errands.send(lambda: (begun.set(), threading.Event().wait()))\n"
        "    begun.wait()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=True)
