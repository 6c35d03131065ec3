"""Every flag of `combine`, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import ADAPTER

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
METHODS = ("svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", "della", "sce", "tsv")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another adapter of the fixture's shapes."""
    folder = tmp_path / "second"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(value.shape, generator=generator).to(value.dtype)
        for name, value in load_file(ADAPTER / WEIGHTS).items()
    }
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    return folder


def _bytes(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def test_combine_json_and_out(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """The contract's keys; -o and --out are one flag."""
    result = adaptool("combine", "--json", ADAPTER, second, "--out", tmp_path / "a")
    assert {"out", "method", "rank", "exact", "relative_error"} <= result.keys()
    assert (result["method"], result["exact"], result["relative_error"]) == ("cat", True, 0.0)
    adaptool("combine", ADAPTER, second, "-o", tmp_path / "b")
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_combine_without_out(
    adaptool: Adaptool, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """./combined, or ./combined.safetensors where every input is a single file."""
    monkeypatch.chdir(tmp_path)
    assert adaptool("combine", ADAPTER, second)["out"] == "combined"
    adaptool("convert", ADAPTER, "one.safetensors", "--to", "peft")
    found = adaptool("combine", "one.safetensors", "one.safetensors")
    assert found["out"] == "combined.safetensors"
    assert Path("combined.safetensors").is_file()


def test_combine_weights(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """One for each, negative and 0 too; another number of them, NaN or only zeros are exit 2."""
    adaptool("combine", ADAPTER, second, "--weights", "-0.5,0", "-o", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["lora_alpha"] < 0
    for bad in ("1", "1,2,3", "nan,1", "0,0", "1,x"):
        adaptool("combine", ADAPTER, second, "--weights", bad, "-o", tmp_path / "no", code=2)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("method", METHODS)
def test_combine_method_needs_a_rank(
    adaptool: Adaptool, second: Path, tmp_path: Path, method: str
) -> None:
    """--rank N gives that rank; without it one line and exit 2."""
    adaptool("combine", ADAPTER, second, "--method", method, "-o", tmp_path / "no", code=2)
    result = adaptool(
        "combine", ADAPTER, second, "--method", method, "--rank", "3", "-o", tmp_path / "out"
    )
    assert result["rank"] == {"min": 3, "max": 3}
    assert 0 < result["relative_error"] < 1
    assert not (tmp_path / "no").exists()


def test_combine_unknown_method(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """Exit 2, naming those there are."""
    error = adaptool(
        "combine", ADAPTER, second, "--method", "average", "-o", tmp_path / "no", code=2
    )["error"]
    assert "dare_ties" in error["message"]


@pytest.mark.parametrize("rank", ["0", "-1"])
def test_combine_bad_rank(adaptool: Adaptool, second: Path, tmp_path: Path, rank: str) -> None:
    """Exit 2, nothing written."""
    adaptool("combine", ADAPTER, second, "--rank", rank, "-o", tmp_path / "no", code=2)
    assert not (tmp_path / "no").exists()


def test_combine_density(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """The share of elements kept changes the result; outside of (0, 1] it is exit 2."""
    common = ("combine", ADAPTER, second, "--method", "magnitude_prune", "--rank", "4")
    adaptool(*common, "-o", tmp_path / "all")
    adaptool(*common, "-o", tmp_path / "some", "--density", "0.3")
    assert _bytes(tmp_path / "all") != _bytes(tmp_path / "some")
    for bad in ("0", "1.1", "-0.5"):
        adaptool("combine", "--density", bad, *common[1:], "-o", tmp_path / "no", code=2)


def test_combine_seed(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """The same seed gives the same bytes, another one others."""
    common = ("--method", "dare_linear", "--rank", "4", "--density", "0.5")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        adaptool("combine", ADAPTER, second, *common, "--seed", seed, "-o", tmp_path / name)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b") != _bytes(tmp_path / "c")


def test_combine_majority_sign(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """Sum or votes (one large delta against two small ones); anything else is exit 2."""
    common = (ADAPTER, second, second, "--method", "ties", "--rank", "4", "--weights", "90,-1,-1")
    for sign in ("total", "frequency"):
        adaptool("combine", *common, "--majority-sign", sign, "-o", tmp_path / sign)
    assert _bytes(tmp_path / "total") != _bytes(tmp_path / "frequency")
    adaptool("combine", *common, "--majority-sign", "most", "-o", tmp_path / "no", code=2)


def test_combine_dtype(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """float32 by default; keep is the adapters' own."""
    for flag, wanted in (("float32", {"torch.float32"}), ("bfloat16", {"torch.bfloat16"})):
        adaptool("combine", ADAPTER, second, "--dtype", flag, "-o", tmp_path / flag)
        found = {str(value.dtype) for value in load_file(tmp_path / flag / WEIGHTS).values()}
        assert found == wanted


def test_combine_linear_warns(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """PEFT's factor averaging: a warning and its measured error."""
    result = adaptool("combine", ADAPTER, second, "--method", "linear", "-o", tmp_path / "out")
    assert "factors-averaged" in [finding["code"] for finding in result["findings"]]
    assert result["relative_error"] > 0.01


def test_combine_dry_run_overwrite_quiet(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """Nothing is written; what a receipt accounts for is replaced only when asked."""
    out = tmp_path / "out"
    adaptool("combine", ADAPTER, second, "-o", out, "--dry-run")
    assert not out.exists()
    assert adaptool("combine", ADAPTER, second, "-o", out, "--quiet", text=True) == ("", "")
    adaptool("combine", ADAPTER, second, "-o", out, code=5)
    adaptool("combine", ADAPTER, second, "-o", out, "--overwrite")


def test_combine_threads_and_device(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """Who works does not show in the bytes."""
    for threads in ("1", "2"):
        adaptool(
            "combine",
            ADAPTER,
            second,
            "--rank",
            "2",
            "--threads",
            threads,
            "--device",
            "cpu",
            "-o",
            tmp_path / threads,
        )
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "2")


def test_combine_scales_of_bare_files(adaptool: Adaptool, tmp_path: Path) -> None:
    """--alpha and --scale are taken in the order of the inputs."""
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(ADAPTER / WEIGHTS), bare)
    adaptool("combine", bare, bare, "-o", tmp_path / "no.safetensors", code=3)
    for flag in ("--alpha", "--scale"):
        result = adaptool(
            "combine", bare, bare, flag, "8", flag, "4", "-o", tmp_path / f"{flag}.safetensors"
        )
        assert result["exact"]
    adaptool("combine", bare, "--alpha", "8", "--alpha", "4", "-o", tmp_path / "x.st")
    adaptool("combine", bare, "--scale", "8", "-o", tmp_path / "y.st")


def test_combine_allow_drop_and_pickle(adaptool: Adaptool, tmp_path: Path) -> None:
    """As everywhere: what is not understood is lost only where that is allowed."""
    folder = tmp_path / "odd"
    folder.mkdir()
    tensors = load_file(ADAPTER / WEIGHTS)
    tensors["base_model.model.model.layers.0.lora_unheard_of"] = torch.zeros(2)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    out = tmp_path / "out"
    adaptool("combine", folder, ADAPTER, "-o", out, code=3)
    adaptool("combine", folder, ADAPTER, "-o", out, "--allow-pickle", code=3)
    adaptool("combine", folder, ADAPTER, "-o", out, "--allow-pickle", "--allow-drop", "*unheard_of")


def test_combine_expert_packing(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """Taken, and refused where it is no packing; here nothing is stacked."""
    for packing, code in (("peft", 0), ("unsloth", 0), ("other", 2)):
        out = tmp_path / packing
        adaptool("combine", ADAPTER, second, "--expert-packing", packing, "-o", out, code=code)


def test_combine_contradictions(adaptool: Adaptool, second: Path, tmp_path: Path) -> None:
    """A module of another shape and a changed base: each named, exit 4, nothing written."""
    tensors = load_file(second / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name] = torch.zeros(tensors[name].shape[0] + 2, tensors[name].shape[1])
    save_file(tensors, second / WEIGHTS)
    error = adaptool("combine", ADAPTER, second, "-o", tmp_path / "no", code=4)["error"]
    assert error["code"] == "shape-mismatch"
    assert error["tensor"]
    config = json.loads((second / "adapter_config.json").read_text())
    config["init_lora_weights"] = "pissa"
    (second / "adapter_config.json").write_text(json.dumps(config))
    error = adaptool("combine", ADAPTER, second, "-o", tmp_path / "no", code=4)["error"]
    assert "--init-adapter" in error["hint"]
    assert not (tmp_path / "no").exists()
