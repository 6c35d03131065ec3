"""Every flag of `resize`, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adaptool as library
from command_line import ADAPTER

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


def _ranks(result: Any) -> set[int]:
    return {module["rank_after"] for module in result["modules"]}


def test_resize_rank_and_json(adaptool: Adaptool, tmp_path: Path) -> None:
    """The contract's keys; the factors on disk have that rank."""
    result = adaptool("resize", "--rank", "2", "--json", ADAPTER, tmp_path / "out")
    assert {"out", "modules", "relative_error", "parameters"} <= result.keys()
    assert {"module", "rank_before", "rank_after", "relative_error", "energy"} == set(
        result["modules"][0]
    )
    assert _ranks(result) == {2}
    assert result["parameters"]["after"] < result["parameters"]["before"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 2


def test_resize_without_out_writes_beside(
    adaptool: Adaptool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default is ./NAME-resized, with the suffix of a single file."""
    monkeypatch.chdir(tmp_path)
    assert adaptool("resize", ADAPTER, "--rank", "2")["out"] == "adapter-resized"
    adaptool("resize", ADAPTER, tmp_path / "one.safetensors", "--rank", "2")
    found = adaptool("resize", tmp_path / "one.safetensors", "--rank", "1")
    assert found["out"] == "one-resized.safetensors"
    assert (tmp_path / "one-resized.safetensors").is_file()


@pytest.mark.parametrize(
    ("flag", "value"), [("--energy", "0.6"), ("--error", "0.6"), ("--ratio", "0.6")]
)
def test_resize_per_module_rules(adaptool: Adaptool, tmp_path: Path, flag: str, value: str) -> None:
    """Each module keeps just enough: one rank less would break the rule."""
    result = adaptool("resize", ADAPTER, tmp_path / "out", flag, value)
    less = adaptool("resize", ADAPTER, tmp_path / "less", flag, value, "--max-rank", "1")
    for module, single in zip(result["modules"], less["modules"], strict=True):
        if flag == "--energy":
            assert module["energy"] >= 0.6
            assert module["rank_after"] == 1 or single["energy"] < 0.6
        if flag == "--error":
            assert module["relative_error"] <= 0.6
            assert module["rank_after"] == 1 or single["relative_error"] > 0.6
    assert _ranks(less) == {1}


def test_resize_rules_by_name(adaptool: Adaptool, tmp_path: Path) -> None:
    """--energy, --error and --ratio at their ends keep everything or the largest value alone."""
    whole = adaptool("resize", "--energy", "1", ADAPTER, tmp_path / "a")
    exact = adaptool("resize", "--error", "0", ADAPTER, tmp_path / "b")
    single = adaptool("resize", "--ratio", "1", ADAPTER, tmp_path / "c")
    assert _ranks(whole) == _ranks(exact)
    assert whole["relative_error"] < 1e-6
    assert _ranks(single) == {1}


def test_resize_budget(adaptool: Adaptool, tmp_path: Path) -> None:
    """The weights file is never larger; too small a budget is exit 4 with the numbers."""
    size = (ADAPTER / WEIGHTS).stat().st_size * 3 // 4
    adaptool("resize", ADAPTER, tmp_path / "out", "--budget", str(size))
    assert (tmp_path / "out" / WEIGHTS).stat().st_size <= size
    error = adaptool("resize", ADAPTER, tmp_path / "no", "--budget", "100B", code=4)["error"]
    assert error["code"] == "budget-too-small"
    assert not (tmp_path / "no").exists()


def test_resize_keep(adaptool: Adaptool, tmp_path: Path) -> None:
    """A share of the factors' parameters."""
    result = adaptool("resize", ADAPTER, tmp_path / "out", "--keep", "0.5")
    assert result["parameters"]["after"] <= 0.5 * result["parameters"]["before"]


def test_resize_min_and_max_rank(adaptool: Adaptool, tmp_path: Path) -> None:
    """Bounds on what the rule says."""
    low = adaptool("resize", ADAPTER, tmp_path / "low", "--error", "0.999", "--min-rank", "2")
    before = {module["module"]: module["rank_before"] for module in low["modules"]}
    assert all(
        module["rank_after"] == min(2, before[module["module"]]) for module in low["modules"]
    )
    high = adaptool("resize", ADAPTER, tmp_path / "high", "--error", "0", "--max-rank", "2")
    assert max(_ranks(high)) == 2


def test_resize_dtype(adaptool: Adaptool, tmp_path: Path) -> None:
    """keep is the adapter's own; otherwise every tensor is converted."""
    before = {value.dtype for value in load_file(ADAPTER / WEIGHTS).values()}
    adaptool("resize", ADAPTER, tmp_path / "kept", "--rank", "2", "--dtype", "keep")
    assert {value.dtype for value in load_file(tmp_path / "kept" / WEIGHTS).values()} == before
    adaptool("resize", ADAPTER, tmp_path / "half", "--rank", "2", "--dtype", "float16")
    found = {str(value.dtype) for value in load_file(tmp_path / "half" / WEIGHTS).values()}
    assert found == {"torch.float16"}


def test_resize_dry_run_and_quiet(adaptool: Adaptool, tmp_path: Path) -> None:
    """The errors without a file; --quiet says nothing of what was done."""
    result = adaptool("resize", ADAPTER, tmp_path / "out", "--rank", "2", "--dry-run")
    assert result["dry_run"] is True
    assert not (tmp_path / "out").exists()
    out, err = adaptool("resize", ADAPTER, tmp_path / "out", "--rank", "2", "--quiet", text=True)
    assert (out, err) == ("", "")


def test_resize_overwrite(adaptool: Adaptool, tmp_path: Path) -> None:
    """What a receipt accounts for may be replaced, and only when asked."""
    adaptool("resize", ADAPTER, tmp_path / "out", "--rank", "2")
    adaptool("resize", ADAPTER, tmp_path / "out", "--rank", "1", code=5)
    assert _ranks(adaptool("resize", ADAPTER, tmp_path / "out", "--rank", "1", "--overwrite")) == {
        1
    }
    (tmp_path / "out" / "mine.txt").write_text("")
    adaptool("resize", ADAPTER, tmp_path / "out", "--rank", "2", "--overwrite", code=5)


def test_resize_threads_and_device(adaptool: Adaptool, tmp_path: Path) -> None:
    """Who works does not show in the bytes."""
    for name, more in (("a", ("--threads", "1")), ("b", ("--threads", "3"))):
        adaptool("resize", ADAPTER, tmp_path / name, "--rank", "2", *more, "--device", "cpu")
    assert adaptool("resize", "--threads", "0", ADAPTER, tmp_path / "c", code=2)["error"]
    left, right = ((tmp_path / name / WEIGHTS).read_bytes() for name in "ab")
    assert left == right


def test_resize_allow_drop(adaptool: Adaptool, tmp_path: Path) -> None:
    """A tensor that nobody understands is exit 3, unless it may be lost; the receipt says so."""
    folder = tmp_path / "odd"
    folder.mkdir()
    tensors = load_file(ADAPTER / WEIGHTS)
    tensors["base_model.model.model.layers.0.lora_unheard_of"] = tensors[next(iter(tensors))]
    save_file({name: value.clone() for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    adaptool("resize", folder, tmp_path / "out", "--rank", "2", code=3)
    adaptool("resize", folder, tmp_path / "out", "--rank", "2", "--allow-drop", "*unheard_of")
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert receipt["decisions"]["dropped"] == ["base_model.model.model.layers.0.lora_unheard_of"]


def test_resize_allow_pickle(adaptool: Adaptool, tmp_path: Path) -> None:
    """adapter_model.bin is read where it is allowed, and gives what the safetensors give."""
    import torch

    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save(load_file(ADAPTER / WEIGHTS), folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    adaptool("resize", folder, tmp_path / "no", "--rank", "2", code=3)
    adaptool("resize", folder, tmp_path / "a", "--rank", "2", "--allow-pickle")
    adaptool("resize", ADAPTER, tmp_path / "b", "--rank", "2")
    left, right = ((tmp_path / name / WEIGHTS).read_bytes() for name in "ab")
    assert left == right


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--rank", "0"),
        ("--rank", "-3"),
        ("--rank", "2", "--energy", "0.5"),
        ("--energy", "1.5"),
        ("--energy", "nan"),
        ("--error", "1"),
        ("--ratio", "0"),
        ("--keep", "0"),
        ("--budget", "none"),
        ("--rank", "2", "--min-rank", "0"),
        ("--rank", "2", "--min-rank", "4", "--max-rank", "3"),
    ],
    ids=" ".join,
)
def test_bad_rule_is_one_line_and_nothing_is_written(
    adaptool: Adaptool, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Exit 2."""
    out, err = adaptool("resize", ADAPTER, tmp_path / "out", *flags, code=2, text=True)
    assert out == ""
    assert err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_single_file_without_scale_asks_for_it(adaptool: Adaptool, tmp_path: Path) -> None:
    """--alpha and --scale are for files that carry neither; PEFT's config carries it."""
    rank = json.loads((ADAPTER / "adapter_config.json").read_text())["r"]
    file = tmp_path / "bare.safetensors"
    save_file(load_file(ADAPTER / WEIGHTS), file)
    adaptool("resize", file, tmp_path / "no.safetensors", "--rank", "2", code=3)
    adaptool("resize", file, tmp_path / "a.safetensors", "--rank", "2", "--alpha", str(2 * rank))
    adaptool("resize", file, tmp_path / "s.safetensors", "--rank", "2", "--scale", "2")
    for name in "as":
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as opened:
            config = json.loads(opened.metadata()["adapter_config"])
        assert config["lora_alpha"] == 4, name
    assert library.inspect(tmp_path / "a.safetensors").scaling == {"min": 2.0, "max": 2.0}


def test_resize_expert_packing(adaptool: Adaptool, tmp_path: Path) -> None:
    """Taken, and refused where it is no packing; here nothing is stacked."""
    for packing, code in (("unsloth", 0), ("other", 2)):
        out = tmp_path / packing
        adaptool("resize", ADAPTER, out, "--rank", "2", "--expert-packing", packing, code=code)
