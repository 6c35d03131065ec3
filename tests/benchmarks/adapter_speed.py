"""Times resize, combine and diff on adapters of a 1.5 B model, next to PEFT's add_weighted_adapter.

    python tests/benchmarks/adapter_speed.py [--size qwen2-1.5b] [--rounds 3] [--folder DIR]

Work alone, without the start of Python and torch, and the whole process beside it; medians of the
rounds. PEFT combines inside a loaded model: it gets one of `LAYERS` layers, and its time is
multiplied to all of them (its work is the same in each); loading the model is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import qwen_shaped
from merge_speed import FOLDER, ROOT

LAYERS = 2
OURS = """
import json, sys, time
import torch
import adaptool
from adaptool import api
verb, paths, options = sys.argv[1], sys.argv[2:-1], json.loads(sys.argv[-1])
began = time.perf_counter()
result = getattr(api, verb)(*paths, **options)
print(json.dumps({"seconds": time.perf_counter() - began, "error": result.relative_error}))
"""
PEFT = """
import json, sys, time
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
base, first, second, third, options = sys.argv[1:]
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.bfloat16)
peft = PeftModel.from_pretrained(model, first, adapter_name="a")
peft.load_adapter(second, adapter_name="b")
peft.load_adapter(third, adapter_name="c")
began = time.perf_counter()
peft.add_weighted_adapter(["a", "b", "c"], [0.5, 0.3, 0.2], "d", **json.loads(options))
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


@dataclass(frozen=True)
class Contender:
    """One line of the table: what runs, and what its seconds are multiplied by."""

    name: str
    command: tuple[str, ...]
    times: float = 1.0


@dataclass(frozen=True)
class Timing:
    """Seconds of work, of the whole process, and the error that was reported."""

    work: float
    process: float
    error: float | None


def prepared(folder: Path, size: qwen_shaped.Size) -> Mapping[str, Path]:
    """Adapters a64 (rank 64) and x, y, z (rank 16) of all layers, p, q, r and a config for PEFT."""
    paths = {name: folder / name for name in ("a64", "x", "y", "z", "p", "q", "r", "model")}
    for seed, name in enumerate(("a64", "x", "y", "z")):
        _write(paths[name], size, 64 if name == "a64" else 16, seed)
    few = replace(size, layers=min(LAYERS, size.layers))
    for seed, name in enumerate(("p", "q", "r"), start=1):
        _write(paths[name], few, 16, seed)
    qwen_shaped.write_config(paths["model"], few)
    return paths


def _write(folder: Path, size: qwen_shaped.Size, rank: int, seed: int) -> None:
    """A LoRA on every linear, in bf16, with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(size.layers):
        for name, (out, inner) in qwen_shaped.linears(size).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora_"
            a = torch.randn(rank, inner, generator=generator) * inner**-0.5
            b = torch.randn(out, rank, generator=generator) * 0.01
            tensors[f"{prefix}A.weight"] = a.bfloat16()
            tensors[f"{prefix}B.weight"] = b.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted(name.rpartition(".")[2] for name in qwen_shaped.linears(size))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "base_model_name_or_path": "model",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def contenders(paths: Mapping[str, Path], size: qwen_shaped.Size, out: Path) -> list[Contender]:
    """Everything that is timed."""
    again = {"overwrite": True}
    weights = {"weights": [0.5, 0.3, 0.2], **again}
    three = [str(paths[name]) for name in "xyz"]
    factor = size.layers / min(LAYERS, size.layers)
    ours = [
        _ours("resize 64 -> 8", "resize", [str(paths["a64"]), str(out)], {"rank": 8, **again}),
        _ours(
            "resize --keep 0.125", "resize", [str(paths["a64"]), str(out)], {"keep": 0.125, **again}
        ),
        _ours("diff of rank 64 and 16", "diff", [str(paths["a64"]), str(paths["x"])], {}),
    ]
    for method, rank in (("cat", None), ("svd", 16), ("tsv", 16), ("ties", 16)):
        options = {**weights, "method": method, "rank": rank, "out": str(out), "density": 1.0}
        ours.append(_ours(f"combine {method}", "combine", three, options))
    theirs = []
    for kind, more in (
        ("linear", {}),
        ("cat", {}),
        ("svd", {"svd_rank": 16, "svd_full_matrices": False}),
        ("ties_svd", {"svd_rank": 16, "svd_full_matrices": False, "density": 1.0}),
    ):
        options = json.dumps({"combination_type": kind, **more})
        base = [str(paths[name]) for name in ("model", "p", "q", "r")]
        command = (sys.executable, "-c", PEFT, *base, options)
        theirs.append(Contender(f"PEFT {kind}", command, factor))
    return ours + theirs


def _ours(name: str, verb: str, paths: list[str], options: Mapping[str, object]) -> Contender:
    return Contender(name, (sys.executable, "-c", OURS, verb, *paths, json.dumps(options)))


def measured(contender: Contender) -> Timing:
    """Run it once in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    run = subprocess.run(
        contender.command, env=environment, capture_output=True, text=True, check=True
    )
    process = time.perf_counter() - began
    said = json.loads(run.stdout.splitlines()[-1])
    return Timing(said["seconds"] * contender.times, process, said.get("error"))


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, run in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=qwen_shaped.SIZES, default="qwen2-1.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=os.environ.get(FOLDER))
    given = parser.parse_args(argv)
    size = qwen_shaped.SIZES[given.size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary) / f"{given.size}-adapters"
        lines = contenders(prepared(folder, size), size, folder / "out")
        rounds: dict[str, list[Timing]] = {line.name: [] for line in lines}
        for _ in range(given.rounds):
            for line in lines:
                rounds[line.name].append(measured(line))
    print(f"{'':22}{'work s':>10}{'process s':>12}{'error':>12}")
    for name, timings in rounds.items():
        work = statistics.median(timing.work for timing in timings)
        process = statistics.median(timing.process for timing in timings)
        error = timings[0].error
        shown = "" if error is None else f"{error:.3g}"
        print(f"{name:22}{work:10.2f}{process:12.2f}{shown:>12}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
