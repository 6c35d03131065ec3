"""--base of `resize`, `combine` and `convert`, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def dora(tmp_path: Path) -> Path:
    """The fixture's adapter with a magnitude for every module."""
    folder = tmp_path / "dora"
    folder.mkdir()
    tensors = load_file(ADAPTER / WEIGHTS)
    generator = torch.Generator().manual_seed(1)
    for name, value in list(tensors.items()):
        if name.endswith("lora_B.weight"):
            size = torch.rand(value.shape[0], generator=generator) + 0.5
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = size
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((ADAPTER / "adapter_config.json").read_text()) | {"use_dora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_convert_base_makes_a_lora_of_dora(adaptool: Adaptool, dora: Path, tmp_path: Path) -> None:
    """Exit 4 without a base or a rank; with both the error is stated."""
    out = tmp_path / "out"
    error = adaptool("convert", dora, out, "--to", "lora", "--rank", "2", code=4)["error"]
    assert error["code"] == "not-low-rank"
    assert "--base" in error["hint"]
    error = adaptool("convert", dora, out, "--to", "lora", "--base", BASE, code=4)["error"]
    assert "--rank" in error["hint"]
    assert not out.exists()
    one = adaptool("convert", dora, out, "--to", "lora", "--base", BASE, "--rank", "2")
    assert 0 < one["relative_error"] < 1
    more = adaptool(
        "convert", dora, tmp_path / "more", "--to", "lora", "--base", BASE, "--energy", "0.999"
    )
    assert more["relative_error"] <= 0.001**0.5 < one["relative_error"]
    dry = adaptool(
        "convert",
        dora,
        tmp_path / "dry",
        "--to",
        "lora",
        "--base",
        BASE,
        "--rank",
        "2",
        "--dry-run",
    )
    assert dry["relative_error"] is None
    assert not (tmp_path / "dry").exists()


def test_combine_base_sums_dora(adaptool: Adaptool, dora: Path, tmp_path: Path) -> None:
    """Exit 4 without the base; with it and a rank, one LoRA."""
    out = tmp_path / "out"
    error = adaptool("combine", dora, ADAPTER, "--rank", "4", "-o", out, code=4)["error"]
    assert "--base" in error["hint"]
    adaptool("combine", dora, ADAPTER, "--base", BASE, "-o", out, code=4)
    adaptool("combine", dora, ADAPTER, "--base", tmp_path / "x", "-o", out, code=2)
    assert not out.exists()
    result = adaptool("combine", dora, ADAPTER, "--base", BASE, "--rank", "4", "-o", out)
    assert (result["exact"], result["rank"]) == (False, {"min": 4, "max": 4})
    assert 0 < result["relative_error"] < 1


def test_resize_base_states_the_error_of_merged_weights(
    adaptool: Adaptool, dora: Path, tmp_path: Path
) -> None:
    """Other errors, the same bytes, and no note that they are of B A alone."""
    one = adaptool("resize", dora, tmp_path / "a", "--rank", "2")
    other = adaptool("resize", dora, tmp_path / "b", "--rank", "2", "--base", BASE)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert one["relative_error"] != other["relative_error"] > 0
    notes = [{finding["code"] for finding in each["findings"]} for each in (one, other)]
    assert "dora-direction" in notes[0]
    assert "dora-direction" not in notes[1]
