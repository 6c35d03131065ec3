"""Merges from and to a Hub: seconds, memory, and how much of the disk passes under TMPDIR.

    python tests/benchmarks/hub_speed.py [--size qwen2-1.5b] [--rounds 1] [--folder DIR]

The Hub is the stand-in of the tests, in a process of its own on the loopback interface, so the
network costs nothing but its copies. Rows: a local merge; from `hf://` to a directory; from a
directory to `hf://`; both. "passing" is the largest sum of blocks that files under TMPDIR held, in
shards of the base, looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import qwen_shaped
from merge_speed import FOLDER, ROOT, SETTLE_SECONDS, Inputs, prepared

LOOK_SECONDS = 0.02
SERVE = "--serve"
NAMES = ("local", "from hf://", "to hf://", "from and to hf://")


@dataclass(frozen=True)
class Passing:
    """One process: seconds, peak MiB, and the most bytes that it held under TMPDIR."""

    wall: float
    peak: float
    disk: int


class Served(mmap.mmap):
    """A file as the body of an answer, digested once."""

    sha256: str


def served(path: Path) -> bytes:
    """The file, for the stand-in."""
    with path.open("rb") as file:
        body = Served(file.fileno(), 0, access=mmap.ACCESS_READ)
    body.sha256 = hashlib.sha256(body).hexdigest()
    return cast("bytes", body)


def serve(base: Path, adapter: Path) -> None:
    """Be the Hub until stdin ends; says its address first."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hub_stand_in import StandIn

    with StandIn() as hub:
        for name, folder in (("bench/base", base), ("bench/adapter", adapter)):
            hub.add(name, {path.name: served(path) for path in folder.iterdir()})
        print(hub.url, flush=True)
        sys.stdin.read()


@contextmanager
def hub_of(inputs: Inputs) -> Iterator[dict[str, str]]:
    """The environment that points at a stand-in in another process."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hub_stand_in import TOKEN

    command = [sys.executable, __file__, SERVE, str(inputs.base), str(inputs.adapter)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    yield {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    process.communicate()


def commands(inputs: Inputs, out: Path) -> dict[str, list[str]]:
    """The merges by name."""
    here, there = (str(inputs.base), str(inputs.adapter)), ("hf://bench/base", "hf://bench/adapter")
    ours = [sys.executable, "-m", "adaptool", "merge"]
    return {
        "local": [*ours, *here, str(out)],
        "from hf://": [*ours, *there, str(out)],
        "to hf://": [*ours, *here, "hf://bench/out"],
        "from and to hf://": [*ours, *there, "hf://bench/out"],
    }


def measured(command: list[str], environment: dict[str, str], out: Path, passing: Path) -> Passing:
    """Run it once, and look at what lies under TMPDIR meanwhile."""
    shutil.rmtree(out, ignore_errors=True)
    passing.mkdir(parents=True)
    os.sync()
    time.sleep(SETTLE_SECONDS)
    inherited = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(passing / "cache")}
    most, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            env={**inherited, **environment, "TMPDIR": str(passing)},
            stdout=said,
            stderr=said,
        )
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            most = max(most, held(passing))
            time.sleep(LOOK_SECONDS)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            message = f"{' '.join(command)} ended with {process.returncode}: {said.read()}"
            raise SystemExit(message)
    shutil.rmtree(passing)
    return Passing(wall, usage.ru_maxrss / 1024, most)


def held(folder: Path) -> int:
    """Bytes of disk that files below `folder` hold; some go while they are counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118
            except FileNotFoundError:
                continue
    return total


def report(found: dict[str, list[Passing]], shard: int) -> list[str]:
    """The table, a line each."""
    local = statistics.median(each.wall for each in found["local"])
    lines = [f"{'':<20}{'wall s':>9}{'/ local':>9}{'peak MiB':>10}{'passing, shards':>17}"]
    for name, runs in found.items():
        wall = statistics.median(each.wall for each in runs)
        peak = max(each.peak for each in runs)
        disk = max(each.disk for each in runs) / shard
        lines.append(f"{name:<20}{wall:>9.2f}{wall / local:>9.2f}{peak:>10.0f}{disk:>17.2f}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, merge in turns, print."""
    default = os.environ.get(FOLDER, str(ROOT / "build" / "bench"))
    parser = argparse.ArgumentParser(description="Times merges from and to a Hub.")
    parser.add_argument("--size", choices=sorted(qwen_shaped.SIZES), default="qwen2-1.5b")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(default))
    options = parser.parse_args(argv)
    inputs = prepared(options.folder, options.size)
    out, passing = inputs.base.with_name("out"), inputs.base.with_name("passing")
    shutil.rmtree(passing, ignore_errors=True)
    shard = max(path.stat().st_size for path in inputs.base.glob("*.safetensors"))
    found: dict[str, list[Passing]] = {name: [] for name in NAMES}
    for _ in range(options.rounds):
        for name in NAMES:
            with hub_of(inputs) as environment:
                command = commands(inputs, out)[name]
                found[name].append(measured(command, environment, out, passing))
    shutil.rmtree(out, ignore_errors=True)
    print(f"{options.size}, largest shard {shard / 1e6:.0f} MB, {options.rounds} rounds")
    print("\n".join(report(found, shard)))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main())
