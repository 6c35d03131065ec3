"""The output's bytes depend on the inputs and the options, and on nothing else."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from adaptool import api
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.engine.write import write_model
from adaptool.layouts import decode
from adaptool.model.options import Machine, MergeOptions
from adaptool.ops.merge import Part, plan_merge
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from command_line import environment, run_patched
from small_pairs import (
    LLAMA,
    PAIRS,
    Pair,
    config_of,
    drawn,
    lora,
    save_adapter,
    save_base,
    write,
)

DTYPES = ("bfloat16", "float16", "float32")
Files = dict[str, bytes]


def files(folder: Path) -> Files:
    """Every file below `folder`, the receipt too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differing(left: Files, right: Files) -> list[str]:
    """Names of files that differ: short, where a comparison of all bytes would print them."""
    return [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]


@dataclass(frozen=True)
class Job:
    """A merge of several adapters, each at its weight."""

    base: Path
    adapters: Sequence[tuple[Path, float]]
    precision: str = "float64"
    dtype: str = "keep"

    def run(self, out: Path, *, threads: int = 1, tile_elements: int = TILE_ELEMENTS) -> Files:
        """Merge into `out`; what was written."""
        options = MergeOptions().given(precision=self.precision, dtype=self.dtype)
        with ExitStack() as stack:
            base = stack.enter_context(open_checkpoint(self.base))
            parts = []
            for path, weight in self.adapters:
                opened = stack.enter_context(open_adapter(path))
                parts.append(Part(opened, decode(opened), weight))
            plan = plan_merge(base, parts, options)
            machine = Machine("cpu", threads)
            write_model(plan, out, "merge", machine, checksum=True, tile_elements=tile_elements)
        return files(out)


def job(name: str, folder: Path, *, dtype: str = "bfloat16", **options: Any) -> Job:
    """The pair `name` as a job; `two adapters` adds one with whole tensors."""
    if name != "two adapters":
        pair = write(name, folder, dtype=dtype)
        return Job(pair.base, [(pair.adapter, 1.0)], **options)
    first = write("dora-rows", folder / "first", dtype=dtype)
    second = write("modules-to-save", folder / "second", dtype=dtype)
    return Job(first.base, [(first.adapter, 0.7), (second.adapter, -0.3)], **options)


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every tensor into several jobs, which otherwise takes eight million elements."""
    monkeypatch.setattr("adaptool.engine.tiles.JOB_ELEMENTS", 1000)
    monkeypatch.setattr("adaptool.engine.tiles.COPY_BYTES", 1000)


every_pair = pytest.mark.parametrize("name", [*PAIRS, "two adapters"])


@every_pair
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_jobs")
def test_bytes_do_not_depend_on_threads_or_tiles(name: str, dtype: str, tmp_path: Path) -> None:
    """One thread with large tiles, and others with tiles down to a single row."""
    merge = job(name, tmp_path, dtype=dtype)
    expected = merge.run(tmp_path / "out")
    for threads, tile_elements in ((2, 700), (8, 16 * 48), (2, 1), (1, 33 * 48), (8, 4096)):
        out = tmp_path / f"{threads}-{tile_elements}"
        found = merge.run(out, threads=threads, tile_elements=tile_elements)
        assert differing(found, expected) == [], (threads, tile_elements)


@every_pair
@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_arithmetic_does_not_depend_on_threads(
    name: str, dtype: str, tmp_path: Path
) -> None:
    """The fast arithmetic keeps its tiles, whoever computes them."""
    merge = job(name, tmp_path, dtype=dtype, precision="float32")
    expected = merge.run(tmp_path / "out")
    for threads in (2, 8):
        found = merge.run(tmp_path / str(threads), threads=threads)
        assert differing(found, expected) == [], threads


@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
@pytest.mark.usefixtures("small_jobs")
def test_other_dtypes_do_not_depend_on_threads_or_tiles(wanted: str, tmp_path: Path) -> None:
    """--dtype makes every row a computed one, those that no adapter touches too."""
    pair = write("dora-columns", tmp_path, dtype="float32")
    merge = Job(pair.base, [(pair.adapter, 1.0)], dtype=wanted)
    expected = merge.run(tmp_path / "out")
    found = merge.run(tmp_path / "again", threads=8, tile_elements=500)
    assert differing(found, expected) == []


def test_large_tensor_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    """With the real job and tile sizes, a tensor that several threads share."""
    rows, columns = 4099, 2100
    module = "model.layers.0.mlp.up_proj"
    tensors = {
        "model.embed_tokens.weight": drawn(1, 8, 8),
        "model.norm.weight": drawn(2, 8),
        f"{module}.weight": drawn(3, rows, columns),
    }
    save_base(tmp_path / "base", tensors, LLAMA, "bfloat16")
    factors = lora(module, rows, columns, seed=4)
    save_adapter(tmp_path / "adapter", factors, config_of(target_modules=["up_proj"]))
    for precision in ("float64", "float32"):
        merge = Job(tmp_path / "base", [(tmp_path / "adapter", 1.0)], precision)
        expected = merge.run(tmp_path / f"{precision}-1")
        for threads in (2, 5):
            found = merge.run(tmp_path / f"{precision}-{threads}", threads=threads)
            assert differing(found, expected) == [], (precision, threads)


def copied(pair: Pair, folder: Path) -> Pair:
    """The same files under the same names elsewhere, written now and in another order."""
    found = Pair(folder / "base", folder / "adapter")
    for source, target in ((pair.adapter, found.adapter), (pair.base, found.base)):
        target.mkdir(parents=True)
        for path in sorted(source.iterdir(), reverse=True):
            shutil.copyfile(path, target / path.name)
    return found


ELSEWHERE = {
    "LC_ALL": "tr_TR.UTF-8",
    "LANG": "tr_TR.UTF-8",
    "TZ": "Pacific/Chatham",
    "PYTHONHASHSEED": "4711",
    "HOME": "/nonexistent",
    "USER": "somebody-else",
    "LOGNAME": "somebody-else",
    "HOSTNAME": "another-host",
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "3",
    "PYTHONUTF8": "0",
}


@pytest.mark.parametrize("name", ["lora", "dora-columns", "modules-to-save"])
def test_bytes_do_not_depend_on_surroundings(name: str, tmp_path: Path) -> None:
    """Another directory, process, locale, time zone, clock, hash seed and user; relative paths."""
    here = write(name, tmp_path / "here")
    api.merge(here.base, here.adapter, tmp_path / "out", checksum=True, threads=1)
    there = tmp_path / "a much longer way" / "there"
    copied(here, there)
    patch = f"import os, time; os.chdir({str(there)!r}); time.time = lambda: 4102444800.0"
    arguments = ("merge", "base", "./adapter/", "../there/out", "--checksum", "--threads", "3")
    answer = run_patched(patch, *arguments, env=ELSEWHERE)
    assert answer.code == 0, answer.err
    assert differing(files(there / "out"), files(tmp_path / "out")) == []


def test_bytes_do_not_depend_on_what_was_there(tmp_path: Path) -> None:
    """A fresh output, one that replaces another merge, and one that was begun before."""
    pair = write("lora", tmp_path)
    api.merge(pair.base, pair.adapter, tmp_path / "fresh")
    api.merge(pair.base, pair.adapter, tmp_path / "out", weight=0.5, max_shard_size=20_000)
    api.merge(pair.base, pair.adapter, tmp_path / "out", overwrite=True)
    assert differing(files(tmp_path / "out"), files(tmp_path / "fresh")) == []


@every_pair
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_0_gives_the_bases_bytes(name: str, dtype: str, tmp_path: Path) -> None:
    """Every file of the base, and a receipt."""
    found = job(name, tmp_path, dtype=dtype)
    idle = Job(found.base, [(path, 0.0) for path, _ in found.adapters])
    assert differing(idle.run(tmp_path / "out"), files(found.base)) == [
        "SHA256SUMS",
        "adaptool.json",
    ]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float32"}, {"max_shard_size": 50_000}, {"max_shard_size": 10**9}],
    ids=["plain", "other dtype", "smaller shards", "one shard"],
)
def test_dry_run_tells_what_a_run_writes(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing is written; names, dtypes, shapes, seats and sizes are those of the real output."""
    pair = write(name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    dry = api.merge(pair.base, pair.adapter, tmp_path / "out", dry_run=True, **options)
    assert sorted(tmp_path.rglob("*")) == before
    real = api.merge(pair.base, pair.adapter, tmp_path / "out", **options)
    assert (dry.total, dry.touched, dry.bytes) == (real.total, real.touched, real.bytes)
    plan: Any = dry.plan
    written = files(tmp_path / "out")
    assert {file["name"]: file["bytes"] for file in plan["files"]} == {
        file: len(content) for file, content in written.items() if file.endswith(".safetensors")
    }
    others = {file for file in written if not file.endswith(".safetensors")}
    assert {*plan["documents"], "adaptool.json"} == others
    seats = {row["tensor"]: row for row in plan["tensors"]}
    assert seats == {**seats, **_as_written(tmp_path / "out", seats)}


def _as_written(folder: Path, seats: dict[str, Any]) -> dict[str, Any]:
    """The plan's rows with what safetensors itself reads from the files."""
    found = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        with safe_open(file, "np") as opened:
            assert set(opened.keys()) == set(header) - {"__metadata__"}
        for tensor in set(header) - {"__metadata__"}:
            begin, end = header[tensor]["data_offsets"]
            found[tensor] = seats[tensor] | {
                "file": file.name,
                "dtype": header[tensor]["dtype"],
                "shape": header[tensor]["shape"],
                "offset": start + begin,
                "bytes": end - begin,
            }
    assert set(found) == set(seats)
    return found


def _texts(value: Any) -> list[str]:
    """Every key and every string in a JSON value."""
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in _texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_receipt_says_nothing_about_the_machine(tmp_path: Path) -> None:
    """No path, host, user, clock, thread count or device; the base's name on the Hub is no path."""
    pair = write("lora", tmp_path)
    declared = json.loads((pair.adapter / "adapter_config.json").read_text())
    on_the_hub = declared["base_model_name_or_path"]
    api.merge(pair.base, pair.adapter, tmp_path / "out", device="cpu", threads=7, checksum=True)
    texts = _texts(json.loads((tmp_path / "out" / "adaptool.json").read_text()))
    assert not [text for text in texts if os.sep in text and text != on_the_hub]
    assert str(tmp_path) not in "".join(texts)
    assert socket.gethostname() not in texts
    assert environment().get("USER", "somebody") not in texts
    forbidden = {"device", "threads", "host", "hostname", "user", "time", "date", "seconds"}
    assert not forbidden & {text.lower() for text in texts}
    assert "cpu" not in texts
