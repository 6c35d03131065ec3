"""Every flag of `extract`, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def tuned(adaptool: Adaptool, tmp_path: Path) -> Path:
    """The fixture's base with its adapter merged in, in float32."""
    adaptool("merge", BASE, ADAPTER, tmp_path / "tuned", "--dtype", "float32")
    return tmp_path / "tuned"


def test_extract_rank_and_json(adaptool: Adaptool, tuned: Path, tmp_path: Path) -> None:
    """Modules with rank and error, what is carried whole, how much did not change."""
    result = adaptool("extract", BASE, tuned, tmp_path / "out", "--rank", "2", "--json")
    assert {"out", "modules", "saved", "unchanged", "relative_error"} <= result.keys()
    assert {module["rank"] for module in result["modules"]} == {2}
    assert 0 < result["relative_error"] < 1
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"


def test_extract_energy_and_exact(adaptool: Adaptool, tuned: Path, tmp_path: Path) -> None:
    """All of the difference comes back, by the Gram matrix too."""
    adaptool("extract", BASE, tuned, tmp_path / "a", "--energy", "1")
    adaptool("extract", BASE, tuned, tmp_path / "b", "--energy", "1", "--exact")
    for name in "ab":
        adaptool("merge", BASE, tmp_path / name, tmp_path / f"{name}-merged", "--dtype", "float32")
        diff = adaptool("diff", tuned, tmp_path / f"{name}-merged")
        assert diff["relative_error"] < 1e-6


def test_extract_without_a_rule_or_with_two(
    adaptool: Adaptool, tuned: Path, tmp_path: Path
) -> None:
    """Exit 2, nothing written."""
    for flags in ((), ("--rank", "2", "--energy", "0.5"), ("--rank", "0"), ("--energy", "0")):
        adaptool("extract", BASE, tuned, tmp_path / "no", *flags, code=2)
    assert not (tmp_path / "no").exists()


def test_extract_dtype(adaptool: Adaptool, tuned: Path, tmp_path: Path) -> None:
    """float32 unless asked."""
    adaptool("extract", BASE, tuned, tmp_path / "out", "--rank", "2", "--dtype", "bfloat16")
    found = {value.dtype for value in load_file(tmp_path / "out" / WEIGHTS).values()}
    assert found == {torch.bfloat16}


def test_extract_dry_run_overwrite_quiet(adaptool: Adaptool, tuned: Path, tmp_path: Path) -> None:
    """Nothing is written; what a receipt accounts for is replaced only when asked."""
    out = tmp_path / "out"
    adaptool("extract", BASE, tuned, out, "--rank", "2", "--dry-run")
    assert not out.exists()
    said = adaptool("extract", BASE, tuned, out, "--rank", "2", "--quiet", text=True)
    assert said == ("", "")
    adaptool("extract", BASE, tuned, out, "--rank", "2", code=5)
    adaptool("extract", BASE, tuned, out, "--rank", "2", "--overwrite")


def test_extract_threads_device(adaptool: Adaptool, tuned: Path, tmp_path: Path) -> None:
    """Who works does not show in the bytes."""
    for threads in ("1", "2"):
        out = tmp_path / threads
        adaptool(
            "extract", BASE, tuned, out, "--rank", "2", "--device", "cpu", "--threads", threads
        )
    left, right = ((tmp_path / name / WEIGHTS).read_bytes() for name in "12")
    assert left == right


def test_extract_allow_pickle(adaptool: Adaptool, tuned: Path, tmp_path: Path) -> None:
    """pytorch_model.bin is read where it is allowed."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for file in tuned.glob("*.safetensors"):
        tensors |= load_file(file)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_bytes((tuned / "config.json").read_bytes())
    adaptool("extract", BASE, folder, tmp_path / "no", "--rank", "2", code=3)
    adaptool("extract", BASE, folder, tmp_path / "out", "--rank", "2", "--allow-pickle")
    adaptool("extract", BASE, tuned, tmp_path / "same", "--rank", "2")
    left, right = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("out", "same"))
    assert left == right
