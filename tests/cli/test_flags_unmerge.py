"""Every flag of `unmerge`, and `merge --reversible`, through the real command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from command_line import ADAPTER, BASE
from unmerging import lost

Adaptool = Callable[..., Any]


@pytest.fixture
def merged(adaptool: Adaptool, tmp_path: Path) -> Path:
    adaptool("merge", "--reversible", BASE, ADAPTER, tmp_path / "merged")
    return tmp_path / "merged"


def test_merge_reversible(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """The sidecar lies beside the receipt, and unmerge restores the base."""
    assert (merged / "adaptool.unmerge").exists()
    assert adaptool("unmerge", merged, ADAPTER, tmp_path / "out")["exact"]
    assert lost(BASE, tmp_path / "out") == []


def test_unmerge_json(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """The contract's keys."""
    body = adaptool("unmerge", "--json", merged, ADAPTER, tmp_path / "out")
    keys = {"schema", "out", "exact", "tensors", "bytes", "bound", "seconds", "findings"}
    assert set(body) == keys
    assert body["out"] == str(tmp_path / "out")


def test_unmerge_quiet(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """Silence where all is well."""
    out = tmp_path / "out"
    assert adaptool("unmerge", "--quiet", merged, ADAPTER, out, text=True) == ("", "")


def test_unmerge_says_how_exact_it_is(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """In words, with a sidecar and without."""
    text, _ = adaptool("unmerge", merged, ADAPTER, tmp_path / "out", text=True)
    assert "every byte is the base's" in text
    (merged / "adaptool.unmerge").unlink()
    text, _ = adaptool("unmerge", merged, ADAPTER, tmp_path / "near", text=True)
    assert "by subtracting, at most" in text


def test_unmerge_exact(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """Exit 4 without the sidecar."""
    (merged / "adaptool.unmerge").unlink()
    body = adaptool("unmerge", "--exact", merged, ADAPTER, tmp_path / "out", code=4)
    assert body["error"]["code"] == "not-reversible"


def test_unmerge_add(adaptool: Adaptool, tmp_path: Path) -> None:
    """Two adapters, as the receipt lists them; the weight may be left out."""
    two = tmp_path / "two"
    adaptool("merge", "--reversible", f"--add={ADAPTER}=0.5", BASE, ADAPTER, two)
    adaptool("unmerge", "--add", ADAPTER, two, ADAPTER, tmp_path / "out")
    assert lost(BASE, tmp_path / "out") == []


def test_unmerge_init_adapter(adaptool: Adaptool, tmp_path: Path) -> None:
    """The beginning that the merge was given must be given again."""
    two = tmp_path / "two"
    adaptool("merge", "--reversible", f"--init-adapter={ADAPTER}", BASE, ADAPTER, two)
    adaptool("unmerge", two, ADAPTER, tmp_path / "out", code=4)
    adaptool("unmerge", "--init-adapter", ADAPTER, two, ADAPTER, tmp_path / "out")
    assert lost(BASE, tmp_path / "out") == []


def test_unmerge_overwrite_and_dry_run(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """A plan writes nothing; an output of ours may be replaced."""
    out = tmp_path / "out"
    plan = adaptool("unmerge", "--dry-run", merged, ADAPTER, out)["plan"]
    assert plan["tensors"]
    assert not out.exists()
    adaptool("unmerge", merged, ADAPTER, out)
    adaptool("unmerge", merged, ADAPTER, out, code=5)
    adaptool("unmerge", "--overwrite", merged, ADAPTER, out)


def test_unmerge_machine(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """Who computes does not matter."""
    adaptool("unmerge", "--device", "cpu", "--threads", "1", merged, ADAPTER, tmp_path / "out")
    assert lost(BASE, tmp_path / "out") == []


def test_unmerge_allow_pickle(adaptool: Adaptool, tmp_path: Path) -> None:
    """A pickle that was merged is taken apart where it is allowed."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    torch.save(tensors, pickled / "adapter_model.bin")
    merged, out = tmp_path / "merged", tmp_path / "out"
    adaptool("merge", "--allow-pickle", "--reversible", BASE, pickled, merged)
    adaptool("unmerge", merged, pickled, out, code=3)
    adaptool("unmerge", "--allow-pickle", merged, pickled, out)
    assert lost(BASE, out) == []
