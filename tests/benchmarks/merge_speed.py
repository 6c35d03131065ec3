"""Times whole processes that merge the same adapter, next to `cp` on the same disk.

    python tests/benchmarks/merge_speed.py [--size qwen2-1.5b] [--rounds 3] [--folder DIR]

Contenders take turns, so that a disk that slows down slows all of them. Each row: the process's
wall time, what a `sync` after it still took, its CPU time and its peak resident memory; medians
over the rounds. The inputs are in the page cache after the warm-up round, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import qwen_shaped

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "ADAPTOOL_BENCH_FOLDER"
# On a virtual machine the memory of a deleted output goes back to the host within seconds, and
# getting it again costs more than a copy: whoever starts at once would have it for nothing.
SETTLE_SECONDS = 5
PLAIN, REVERSIBLE, UNMERGE = "adaptool float64", "adaptool reversible", "adaptool unmerge"
# The adapter then changes the weights by 1 %: sqrt(16) * 0.01^2 * 2 of 0.02 is 4 %.
WEIGHT = "0.25"
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


@dataclass(frozen=True)
class Inputs:
    """The model and the adapter that everybody merges."""

    base: Path
    adapter: Path

    @property
    def merged(self) -> Path:
        """Where a reversible merge of the two lies, for whoever takes it apart."""
        return self.base.with_name("merged")


@dataclass(frozen=True)
class Timing:
    """One process: seconds it ran, of the sync after it, of CPU, peak MiB, its own seconds.

    `sidecar`: bytes of adaptool.unmerge, as a share of the output's weights.
    """

    wall: float
    sync: float
    cpu: float
    peak: float
    own: float | None = None
    sidecar: float | None = None

    @property
    def settled(self) -> float:
        """Until the bytes are on the disk."""
        return self.wall + self.sync


def contenders(inputs: Inputs, out: Path) -> dict[str, list[str]]:
    """Name and command of each; every command makes `out`."""
    base, adapter = str(inputs.base), str(inputs.adapter)
    ours = [sys.executable, "-m", "adaptool"]
    merge = [*ours, "merge", base, adapter, str(out), "--json"]
    return {
        "cp -r": ["cp", "-r", base, str(out)],
        PLAIN: [*merge, "--precision", "float64"],
        REVERSIBLE: [*merge, "--precision", "float64", "--reversible", "--weight", WEIGHT],
        UNMERGE: [*ours, "unmerge", str(inputs.merged), adapter, str(out), "--exact", "--json"],
        "adaptool float32": [*merge, "--precision", "float32"],
        "PEFT": [sys.executable, "-c", PEFT, base, adapter, str(out)],
    }


def measured(command: list[str], out: Path) -> Timing:
    """Run `command` once, on a disk with nothing left to write."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    time.sleep(SETTLE_SECONDS)
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaint:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=_environment(), stdout=said, stderr=complaint)
        # wait4 gives this one child's peak; getrusage would give the largest of all.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaint.seek(0)
            message = f"{' '.join(command)} ended with {process.returncode}: {complaint.read()}"
            raise SystemExit(message)
        start = time.perf_counter()
        os.sync()
        sync = time.perf_counter() - start
        said.seek(0)
        own = _own_seconds(said.read())
        cpu = usage.ru_utime + usage.ru_stime
        return Timing(wall, sync, cpu, usage.ru_maxrss / 1024, own, _sidecar(out))


def _sidecar(out: Path) -> float | None:
    """The sidecar's share of the weights; None where there is none."""
    file = out / "adaptool.unmerge"
    if not file.exists():
        return None
    weights = sum(each.stat().st_size for each in out.glob("*.safetensors"))
    return file.stat().st_size / weights


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _own_seconds(said: str) -> float | None:
    return float(json.loads(said)["seconds"]) if said.startswith("{") else None


def prepared(folder: Path, size: str) -> Inputs:
    """The inputs below `folder`, written once."""
    inputs = Inputs(folder / size / "base", folder / size / "adapter")
    shape = qwen_shaped.SIZES[size]
    for path, write in (
        (inputs.base, qwen_shaped.write_model),
        (inputs.adapter, qwen_shaped.write_adapter),
    ):
        if not path.exists():
            unfinished = path.with_name(f"{path.name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            write(unfinished, shape)
            unfinished.rename(path)
    return inputs


def race(inputs: Inputs, out: Path, rounds: int, names: Sequence[str]) -> dict[str, list[Timing]]:
    """`rounds` timings of each contender after one round that is thrown away."""
    commands = contenders(inputs, out)
    if UNMERGE in names:
        measured(contenders(inputs, inputs.merged)[REVERSIBLE], inputs.merged)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            timing = measured(commands[name], out)
            if number:
                timings[name].append(timing)
    for folder in (out, inputs.merged):
        shutil.rmtree(folder, ignore_errors=True)
    return timings


def _median(timings: Sequence[Timing]) -> Timing:
    own = [timing.own for timing in timings if timing.own is not None]
    return Timing(
        statistics.median(timing.wall for timing in timings),
        statistics.median(timing.sync for timing in timings),
        statistics.median(timing.cpu for timing in timings),
        max(timing.peak for timing in timings),
        statistics.median(own) if own else None,
        timings[0].sidecar,
    )


def _ratio(value: float, unit: float | None) -> str:
    return f"{value / unit:.2f}" if unit else "-"


def report(timings: dict[str, list[Timing]]) -> list[str]:
    """The table, a line each."""
    medians = {name: _median(found) for name, found in timings.items()}
    copy, peft = medians.get("cp -r"), medians.get("PEFT")
    heads = ("", "wall s", "+ sync s", "work s", "CPU s", "peak MiB")
    rows = [(*heads, "wall/cp", "all/cp+sync", "wall/PEFT")]
    for name, found in medians.items():
        rows.append(
            (
                name,
                f"{found.wall:.2f}",
                f"{found.settled:.2f}",
                "-" if found.own is None else f"{found.own:.2f}",
                f"{found.cpu:.2f}",
                f"{found.peak:.0f}",
                _ratio(found.wall, copy.wall if copy else None),
                _ratio(found.settled, copy.settled if copy else None),
                _ratio(found.wall, peft.wall if peft else None),
            )
        )
    spread = [
        f"{name}: {min(walls):.2f} to {max(walls):.2f} s"
        for name, found in timings.items()
        for walls in [[timing.wall for timing in found]]
    ]
    lines = [
        "  ".join(f"{cell:>12}" if at else f"{cell:<20}" for at, cell in enumerate(row))
        for row in rows
    ]
    return [*lines, *_reversible(medians), "", "wall, fastest to slowest: " + "; ".join(spread)]


def _reversible(medians: dict[str, Timing]) -> list[str]:
    """What keeping the base costs, and getting it back: bytes, and time next to a plain merge."""
    plain, lines = medians.get(PLAIN), []
    for name in (REVERSIBLE, UNMERGE):
        found = medians.get(name)
        if found is not None and plain is not None:
            wall, cpu = _ratio(found.wall, plain.wall), _ratio(found.cpu, plain.cpu)
            size = "" if found.sidecar is None else f", sidecar {found.sidecar:.2%} of the base"
            lines.append(f"{name} / plain merge: wall {wall}, CPU {cpu}{size}")
    return ["", *lines] if lines else []


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, race, print."""
    default = os.environ.get(FOLDER, str(ROOT / "build" / "bench"))
    parser = argparse.ArgumentParser(description="Times merges against cp and PEFT.")
    parser.add_argument("--size", choices=sorted(qwen_shaped.SIZES), default="qwen2-1.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(default))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the contenders")
    options = parser.parse_args(argv)
    inputs = prepared(options.folder, options.size)
    out = options.folder / options.size / "out"
    names = options.only or list(contenders(inputs, out))
    timings = race(inputs, out, options.rounds, names)
    print(f"{options.size}, {options.rounds} rounds, {os.cpu_count()} cores, {platform.platform()}")
    print("\n".join(report(timings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
