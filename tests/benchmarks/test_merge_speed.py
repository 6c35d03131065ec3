"""The benchmark works, on a model that takes no time."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open

import merge_speed
import qwen_shaped


def test_shape_is_that_of_qwen2_1_5b() -> None:
    """The original has 338 tensors and 1 543 714 304 parameters; LoRA on seven linears is 196."""
    size = qwen_shaped.SIZES["qwen2-1.5b"]
    shapes = qwen_shaped.base_shapes(size)
    assert len(shapes) == 338
    assert sum(map(prod, shapes.values())) == 1_543_714_304
    assert len(qwen_shaped.adapter_shapes(size)) == 2 * 196


def test_generator_writes_the_shards_it_plans(tmp_path: Path) -> None:
    """The safetensors library reads every tensor at its shape, from as many shards as asked."""
    size = qwen_shaped.SIZES["tiny"]
    qwen_shaped.write_model(tmp_path / "base", size)
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) == size.shards
    found = {}
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                found[name] = tuple(file.get_slice(name).get_shape())
    assert found == qwen_shaped.base_shapes(size)


@pytest.mark.slow
def test_benchmark_times_every_contender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One round on the tiny model prints a row for cp, adaptool in both precisions, and PEFT."""
    assert merge_speed.main(["--size", "tiny", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("cp -r", "adaptool float64", "adaptool float32", "PEFT"):
        assert sum(line.startswith(f"{name} ") for line in printed.splitlines()) == 1
    assert re.search(r"adaptool reversible / plain merge: wall \d.*CPU \d.*sidecar \d", printed)
    assert re.search(r"adaptool unmerge / plain merge: wall \d.*CPU \d", printed)
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["adapter", "base"]


def test_unfinished_inputs_are_written_again(tmp_path: Path) -> None:
    """A generator that was interrupted leaves nothing that is taken for a model."""
    (tmp_path / "tiny" / "base-unfinished").mkdir(parents=True)
    inputs = merge_speed.prepared(tmp_path, "tiny")
    assert (inputs.base / "config.json").exists()
    assert (inputs.adapter / "adapter_config.json").exists()
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["adapter", "base"]
