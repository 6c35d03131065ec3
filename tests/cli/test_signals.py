"""A signal in the middle of an import, which libraries like to swallow."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from command_line import run_patched

# Imports a module that is hit by the signal and swallows what comes of it, as torch does with what
# interrupts its import of numpy; afterwards waits to be stopped.
INSPECT = """
import signal
sys.path.insert(0, {folder!r})
from adaptool import api
def inspect(path, **_):
    import swallowing
    print("imported", swallowing.whole, file=sys.stderr, flush=True)
    signal.pause()
api.inspect = inspect
"""
SWALLOWING = """
import os, signal
whole = False
try:
    os.kill(os.getpid(), {number})
    for _ in range(1000):
        whole = True
except BaseException:
    whole = False
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_signal_waits_for_the_end_of_an_import(number: signal.Signals, tmp_path: Path) -> None:
    """The module is whole, and the command ends as if the signal had come a moment later."""
    (tmp_path / "swallowing.py").write_text(SWALLOWING.format(number=int(number)))
    answer = run_patched(INSPECT.format(folder=str(tmp_path)), "inspect", "x")
    assert answer.code == 128 + number
    assert answer.err.splitlines()[:2] == ["imported True", f"error: stopped by {number.name}"]


def test_second_signal_does_not_wait_for_an_import(tmp_path: Path) -> None:
    """An import that hangs is left at once."""
    twice = SWALLOWING.format(number=15).replace("    for", "    os.kill(os.getpid(), 15)\n    for")
    (tmp_path / "swallowing.py").write_text(twice)
    answer = run_patched(INSPECT.format(folder=str(tmp_path)), "inspect", "x")
    assert (answer.code, answer.err) == (143, "")
