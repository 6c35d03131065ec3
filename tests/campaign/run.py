"""`make campaign N=1000`: random cases, each from its seed, in one process per core.

    SEED=17 make campaign      replays one case and prints what it was
    make campaign N=500 FIRST=9000
    make campaign N=100 HALF=diffusion    denoisers of diffusers, across layouts

Results are appended to a file under build/; seeds that stand there are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = {half: Path(f"build/campaign-{half}.jsonl") for half in ("models", "diffusion")}
LIMIT_S = 120


def one(seed: int, half: str = "models") -> dict[str, Any]:
    """One case as a row of the results."""
    if half == "models":  # imported here: the parent process needs no torch
        from campaign.drawing import case_of
        from campaign.judging import judge
    else:
        from campaign.diffusion import case_of, judge

    began = time.process_time()
    case = case_of(seed)
    folder = Path(tempfile.mkdtemp(prefix="campaign-", dir=_fast_folder()))
    signal.alarm(LIMIT_S)
    try:
        outcome = judge(case, folder).as_json()
    except Exception as error:  # noqa: BLE001  a crash of the product is a result
        text = "".join(traceback.format_exception(error)[-3:])[-700:]
        outcome = {"outcome": "crash", "detail": f"{type(error).__name__}: {error}\n{text}"}
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    return {**case.as_json(), **outcome, "seconds": round(time.process_time() - began, 2)}


def _fast_folder() -> str | None:
    memory = Path("/dev/shm")  # noqa: S108  unnamed folders below it are made by mkdtemp
    return str(memory) if memory.is_dir() else None


def prepare() -> None:
    """A worker: one thread, no network, no warnings of libraries."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    from tuner_cases import mended

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, _too_long)
    mended().__enter__()  # for the life of the worker


def _too_long(_signal: int, _frame: Any) -> None:
    message = f"no result within {LIMIT_S} s"
    raise TimeoutError(message)


def main() -> int:
    """Run, append, count; exit 1 where a case is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--half", choices=sorted(RESULTS), default="models")
    given = parser.parse_args()
    results: Path = given.results or RESULTS[given.half]
    if given.seed is not None:
        prepare()
        row = one(given.seed, given.half)
        print(json.dumps(row, indent=1))
        return int(row["outcome"] in {"wrong", "crash"})
    seeds = range(given.first, given.first + given.n)
    done = {row["seed"]: row for row in _rows(results)}
    left = [seed for seed in seeds if seed not in done]
    results.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with (
        results.open("a") as file,
        context.Pool(given.jobs, prepare, maxtasksperchild=400) as pool,
    ):
        for row in pool.imap_unordered(partial(one, half=given.half), left):
            file.write(json.dumps(row) + "\n")
            file.flush()
            done[row["seed"]] = row
            if row["outcome"] in {"wrong", "crash"}:
                print(_line(row), flush=True)
    return report([done[seed] for seed in seeds])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def _line(row: dict[str, Any]) -> str:
    what = f"{row['architecture']} {row['operation']['verb']}"
    return f"{row['outcome']} SEED={row['seed']} {what}: {row['detail']}"


def report(rows: list[dict[str, Any]]) -> int:
    """Print the counts; 1 where anything is wrong."""
    verbs: dict[str, Counter[str]] = defaultdict(Counter)
    codes: Counter[str] = Counter()
    for row in rows:
        verbs[row["operation"]["verb"]].update(["tried", row["outcome"]])
        if row["outcome"] == "refused":
            codes[f"{row['operation']['verb']} {row['code']}"] += 1
    kinds = ("tried", "agreed", "refused", "wrong", "crash", "void")
    print(f"{'':10}", *(f"{kind:>8}" for kind in kinds))
    for verb, counts in sorted(verbs.items()):
        print(f"{verb:10}", *(f"{counts[kind]:8}" for kind in kinds))
    total = sum(verbs.values(), Counter[str]())
    print(f"{'all':10}", *(f"{total[kind]:8}" for kind in kinds))
    judged = {r["architecture"] for r in rows if r["outcome"] != "void"}
    print(f"architectures: {len(judged)}")
    for code, count in codes.most_common():
        print(f"refused {count:5} {code}")
    for reason, count in Counter(r["detail"] for r in rows if r["outcome"] == "void").most_common():
        print(f"void    {count:5} {reason}")
    seconds = sum(row["seconds"] for row in rows)
    print(f"{seconds:.0f} s of CPU, {seconds / max(len(rows), 1):.2f} s a case")
    return int(bool(total["wrong"] or total["crash"]))


if __name__ == "__main__":
    sys.exit(main())
