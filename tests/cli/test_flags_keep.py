"""`merge --quantized keep` and `--allow-lossy`, through the real command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    """The base with one scale for each linear weight of its blocks."""
    base = tmp_path / "fp8"
    shutil.copytree(BASE, base)
    (base / "model.safetensors.index.json").unlink()
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max().float() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": None}
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_merge_and_verify_quantized_keep(adaptool: Adaptool, tmp_path: Path, fp8: Path) -> None:
    """The share of each delta that was kept stands in the answer, the receipt and a table."""
    out = tmp_path / "out"
    body = adaptool("merge", "--quantized", "keep", "--weight", "30", fp8, ADAPTER, out)
    shares = body["stats"]["recoded"]
    assert shares
    assert all(0.5 <= share < 1.1 for share in shares.values())
    receipt = json.loads((out / "adaptool.json").read_text())
    assert receipt["stats"] == body["stats"]
    assert receipt["decisions"]["quantized"]["weights"] == sorted(shares)
    assert (out / "config.json").read_bytes() == (fp8 / "config.json").read_bytes()
    assert adaptool("verify", "--exact", fp8, ADAPTER, out)["ok"]
    assert adaptool("verify", "--quantized", "keep", fp8, ADAPTER, out)["ok"]
    again = tmp_path / "again"
    text, _ = adaptool(
        "merge", "--quantized=keep", "--weight", "30", fp8, ADAPTER, again, text=True
    )
    assert "delta kept" in text
    assert all(name in text for name in shares)


def test_merge_allow_lossy(adaptool: Adaptool, tmp_path: Path, fp8: Path) -> None:
    """Where rounding swallows the deltas the error names the worst; the flag writes them anyway."""
    out = tmp_path / "out"
    given = ("--quantized=keep", "--weight=0.01", fp8, ADAPTER, out)
    refused = adaptool("merge", *given, code=4)["error"]
    assert refused["code"] == "delta-lost"
    assert refused["tensor"].endswith("_proj.weight")
    assert "%" in refused["message"]
    assert not out.exists()
    body = adaptool("merge", "--allow-lossy", *given)
    assert min(body["stats"]["recoded"].values()) < 0.5
    assert "delta-lost" in {finding["code"] for finding in body["findings"]}
    assert adaptool("verify", fp8, ADAPTER, out)["ok"]


def test_merge_quantized_keep_shows_its_plan(adaptool: Adaptool, tmp_path: Path, fp8: Path) -> None:
    """A dry run lists the stored parts that will be made anew, and writes nothing."""
    plan = adaptool("merge", "--dry-run", "--quantized=keep", fp8, ADAPTER, tmp_path / "out")[
        "plan"
    ]
    parts = {row["tensor"]: row["recoded"] for row in plan["tensors"] if "recoded" in row}
    weights = [name for name, part in parts.items() if part["part"] == "weight"]
    assert set(parts) == {*weights, *(f"{name}_scale_inv" for name in weights)}
    assert not (tmp_path / "out").exists()
