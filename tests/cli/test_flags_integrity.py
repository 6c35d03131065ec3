"""`validate --checksum`: whether these are the files that the sums were taken of."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import ADAPTER
from hub_stand_in import StandIn

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def summed(adaptool: Adaptool, tmp_path: Path) -> Path:
    """An adapter with SHA256SUMS and digests in its receipt."""
    adaptool("resize", ADAPTER, tmp_path / "small", "--rank", 2, "--checksum")
    return tmp_path / "small"


def _flip(file: Path) -> None:
    """One bit of the last tensor: every header stays as it was."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _found(said: Any) -> list[tuple[str, str]]:
    assert {each["code"] for each in said["findings"]} <= {"integrity"}
    return [(each["severity"], Path(each["file"]).name) for each in said["findings"]]


def test_validate_checksum(adaptool: Adaptool, summed: Path) -> None:
    """A flipped bit, which no header shows, is an error by both witnesses."""
    assert adaptool("validate", "--checksum", summed)["findings"] == []
    _flip(summed / WEIGHTS)
    assert adaptool("validate", summed)["ok"]
    said = adaptool("validate", "--checksum", summed, code=1)
    assert _found(said) == [("error", WEIGHTS)] * 2
    digest = hashlib.sha256((summed / WEIGHTS).read_bytes()).hexdigest()
    assert all(digest in each["message"] for each in said["findings"])
    assert "SHA256SUMS says" in said["findings"][0]["message"]
    assert "adaptool.json says" in said["findings"][1]["message"]


def test_file_that_is_missing_is_an_error(adaptool: Adaptool, summed: Path) -> None:
    """It is listed, so it was there."""
    (summed / "README.md").write_text("# x\n")
    with (summed / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  gone.txt\n")
    assert _found(adaptool("validate", "--checksum", summed, code=1)) == [("error", "gone.txt")]


def test_weights_that_no_sum_is_known_of_are_a_warning(adaptool: Adaptool, summed: Path) -> None:
    """Somebody put them there later."""
    shutil.copy(summed / WEIGHTS, summed / "more.safetensors")
    said = adaptool("validate", "--checksum", summed)
    assert ("warning", "more.safetensors") in _found(said)


def test_nothing_to_compare_with_is_an_error(adaptool: Adaptool) -> None:
    """A check that was asked for and cannot be made is no success."""
    assert _found(adaptool("validate", "--checksum", ADAPTER, code=1)) == [("error", "adapter")]


def test_sums_of_coreutils_are_read(adaptool: Adaptool, tmp_path: Path) -> None:
    """In both of its forms; a single file by its own line."""
    folder = shutil.copytree(ADAPTER, tmp_path / "adapter")
    for mode in ("--text", "--binary"):
        command = ["sha256sum", mode, "./" + WEIGHTS, "adapter_config.json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        (folder / "SHA256SUMS").write_text(done.stdout)
        assert adaptool("validate", "--checksum", folder)["findings"] == []
        assert adaptool("validate", "--checksum", folder / WEIGHTS)["findings"] == []
    _flip(folder / WEIGHTS)
    said = adaptool("validate", "--checksum", folder / WEIGHTS, code=1)
    assert _found(said) == [("error", WEIGHTS)]


@pytest.mark.parametrize(
    "line", ["0" * 63 + "  x", "0" * 64 + "  ../x", "0" * 64 + "  /etc/passwd", "\x00"]
)
def test_hostile_sums_are_findings(adaptool: Adaptool, tmp_path: Path, line: str) -> None:
    """Lines that say nothing, and names that lead elsewhere."""
    folder = shutil.copytree(ADAPTER, tmp_path / "adapter")
    (folder / "SHA256SUMS").write_text(line + "\n")
    (said,) = adaptool("validate", "--checksum", folder, code=1)["findings"]
    assert said["code"] in {"integrity", "path-unsafe"}
    assert "line 1" in f"{said['message']} {said['field']}"


def test_hostile_receipt_is_a_finding(adaptool: Adaptool, summed: Path) -> None:
    """A name in the receipt that leads out of the directory."""
    receipt = json.loads((summed / "adaptool.json").read_text())
    receipt["outputs"].append({"name": "../x", "bytes": 1, "sha256": "0" * 64})
    (summed / "adaptool.json").write_text(json.dumps(receipt))
    assert _found(adaptool("validate", "--checksum", summed, code=1)) == [("error", "small")]


def test_what_was_pulled_has_digests(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Those of the commit stand in the receipt."""
    del hub
    adaptool("pull", "hf://me/adapter", tmp_path / "out")
    assert adaptool("validate", "--checksum", tmp_path / "out")["findings"] == []
    _flip(tmp_path / "out" / WEIGHTS)
    assert not adaptool("validate", "--checksum", tmp_path / "out", code=1)["ok"]
    assert adaptool("validate", "--checksum", "hf://me/adapter")["findings"] == []
