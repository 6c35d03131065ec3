"""A real merge process that is stopped, and the same command after it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run, environment, finish, patched, run
from small_pairs import Pair, write

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
ANSWERS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}

# The process stops itself where it is called for the n-th time: no race with a clock.
STOPS_ITSELF = """
import os
from {module} import {kind}
calls, original = [], {kind}.{method}
def stopping(self, *arguments):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), {number})
    return original(self, *arguments)
{kind}.{method} = stopping
"""
POINTS = {
    "while torch is imported": ("adaptool.engine.outlets", "FileOutlet", "copy", 1),
    "in the first tile": ("adaptool.engine.outlets", "FileOutlet", "fill", 1),
    "in a later tile": ("adaptool.engine.outlets", "FileOutlet", "fill", 9),
    "in a small file": ("adaptool.store.staging", "Staging", "finished", 5),
    "before it publishes": ("adaptool.store.staging", "Staging", "_make_durable", 1),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write("lora", tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def expected(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run("merge", pair.base, pair.adapter, out).code == 0
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_stopped(answer: Run, number: signal.Signals, home: Path) -> None:
    """Exit 128 + N with one line, OUT absent; what was staged stays for the next run."""
    assert answer.code == ANSWERS[number], answer.err
    assert answer.out == ""
    if number is not signal.SIGKILL:
        first, second = answer.err.splitlines()
        assert first == f"error: stopped by {number.name}"
        assert second.startswith("hint: run the same command again")
    assert not (home / "out").exists()
    left = {path.name for path in home.iterdir()}
    assert left <= {".out.adaptool-partial", ".out.adaptool.lock"}
    assert ".out.adaptool-partial" in left


def assert_goes_on(pair: Pair, home: Path, expected: dict[str, bytes]) -> None:
    """The same command completes, and nothing else is left beside OUT."""
    again = run("merge", pair.base, pair.adapter, home / "out")
    assert again.code == 0, again.err
    assert again.err == ""
    assert files(home / "out") == expected
    assert [path.name for path in home.iterdir()] == ["out"]


FAST = {
    (signal.SIGINT, "while torch is imported"),
    (signal.SIGTERM, "in a later tile"),
    (signal.SIGKILL, "before it publishes"),
}
EVERY = [
    pytest.param(
        number,
        point,
        id=f"{number.name} {point}",
        marks=() if (number, point) in FAST else pytest.mark.slow,
    )
    for number in STOPPING
    for point in POINTS
]


@pytest.mark.parametrize(("number", "point"), EVERY)
def test_merge_that_is_stopped_can_be_taken_up(
    number: signal.Signals,
    point: str,
    pair: Pair,
    expected: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Wherever the signal arrives, OUT is absent, and the next run writes the same bytes."""
    module, kind, method, call = POINTS[point]
    patch = STOPS_ITSELF.format(
        module=module, kind=kind, method=method, call=call, number=int(number)
    )
    command = patched(patch, "merge", pair.base, pair.adapter, tmp_path / "out", "--threads", "2")
    assert_stopped(finish(command), number, tmp_path)
    assert_goes_on(pair, tmp_path, expected)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in STOPPING[1:])],
    ids=lambda number: number.name,
)
def test_signal_from_outside(
    number: signal.Signals, pair: Pair, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Another process sends it as soon as there is a journal, while torch is imported."""
    arguments = ["merge", str(pair.base), str(pair.adapter), str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptool", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = tmp_path / ".out.adaptool-partial"
    while not [*partial.glob("*/journal.json")]:
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert_stopped(Run(process.returncode, out, err), number, tmp_path)
    assert_goes_on(pair, tmp_path, expected)
