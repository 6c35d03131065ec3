"""The flags of every command that reads an adapter: --alpha, --scale, --expert-packing and so on.

The judge of a scale is the same adapter with its config, of what is dropped the file itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import small_pairs
from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]
ALPHA, SCALE = 16, 2.0  # of the fixture adapter, whose rank is 8


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The fixture adapter without its config: nothing says the scale."""
    path = tmp_path / "bare.safetensors"
    shutil.copy(ADAPTER / "adapter_model.safetensors", path)
    return path


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """The fixture adapter with a tensor that belongs to nothing."""
    folder = shutil.copytree(ADAPTER, tmp_path / "odd")
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_Q.weight"
    save_file(tensors | {name: torch.ones(2)}, folder / "adapter_model.safetensors")
    return folder


def _weights(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def _equal(one: Path, other: Path) -> bool:
    ours, theirs = _weights(one), _weights(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_inspect_shows_all_but_the_scale_that_nobody_says(adaptool: Adaptool, bare: Path) -> None:
    """One note with the option that says it; ranks, shapes and effective ranks are there."""
    said = adaptool("inspect", "--values", bare)
    assert said["module_count"] == 14
    assert said["ranks"]["min"] == 8
    assert said["scaling"] is None
    assert {(row["scaling"], row["norm"]) for row in said["modules"]} == {(None, None)}
    assert all(row["effective_rank"] > 0 for row in said["modules"])
    (note,) = [each for each in said["findings"] if each["code"] == "config-missing"]
    assert "--alpha" in note["hint"]
    assert note["file"] == str(bare)


def test_inspect_alpha(adaptool: Adaptool, bare: Path) -> None:
    """Everything is then as with the config."""
    said = adaptool("inspect", "--values", "--alpha", str(ALPHA), bare)
    whole = adaptool("inspect", "--values", ADAPTER)
    assert said["scaling"] == {"min": SCALE, "max": SCALE}
    assert [row["norm"] for row in said["modules"]] == [row["norm"] for row in whole["modules"]]


def test_inspect_scale(adaptool: Adaptool, bare: Path) -> None:
    """In the order of the paths; with an unknown one there are no cosines."""
    both = adaptool("inspect", "--values", "--scale", "3", "--scale=0.5", bare, bare)
    assert [item["scaling"]["min"] for item in both["items"]] == [3, 0.5]
    assert both["similarity"][0][1] == pytest.approx(1)
    first = adaptool("inspect", "--values", "--scale", "3", bare, bare)
    assert [item["scaling"] is None for item in first["items"]] == [False, True]
    assert first["similarity"][0][1] is None


def test_inspect_allow_drop_and_expert_packing(
    adaptool: Adaptool, odd: Path, tmp_path: Path
) -> None:
    """A key of nobody's is refused, or left out by name; the packing is one of two words."""
    refused = adaptool("inspect", odd, code=3)
    assert refused["error"]["code"] == "keys-unrecognised"
    assert adaptool("inspect", "--allow-drop", "*lora_Q*", odd)["module_count"] == 14
    pair = small_pairs.write("experts", tmp_path / "pair")
    assert adaptool("inspect", "--expert-packing", "unsloth", pair.adapter)["module_count"]


def test_validate_alpha_and_scale(adaptool: Adaptool, bare: Path) -> None:
    """Without either the error names them, with one of them the file is sound."""
    (error,) = [each for each in adaptool("validate", bare, code=1)["findings"] if each["hint"]]
    assert error["code"] == "config-missing"
    assert adaptool("validate", "--alpha", "16", "--base", BASE, bare)["ok"]
    both = adaptool("validate", "--scale", "2", "--scale", "3", bare, bare)
    assert both["ok"]
    neither = adaptool("validate", "--alpha", "2", "--scale", "3", bare, code=2)
    assert neither["error"]["field"] == "--alpha"


def test_validate_allow_drop_and_expert_packing(
    adaptool: Adaptool, odd: Path, tmp_path: Path
) -> None:
    """What inspect may leave out validate may leave out, with the base as well."""
    assert not adaptool("validate", odd, code=1)["ok"]
    assert adaptool("validate", "--allow-drop", "*lora_Q*", "--base", BASE, odd)["ok"]
    pair = small_pairs.write("experts", tmp_path / "pair")
    said = adaptool("validate", "--expert-packing", "unsloth", "--base", pair.base, pair.adapter)
    assert said["ok"]


def test_merge_alpha_and_what_verify_and_unmerge_take_from_the_receipt(
    adaptool: Adaptool, bare: Path, tmp_path: Path
) -> None:
    """The same bytes as with the config; the receipt keeps the alpha, another one is refused."""
    out = tmp_path / "out"
    refused = adaptool("merge", BASE, bare, out, code=3)
    assert refused["error"]["code"] == "config-missing"
    adaptool("merge", BASE, ADAPTER, tmp_path / "expected")
    adaptool("merge", "--alpha", "16", BASE, bare, out)
    assert _equal(out, tmp_path / "expected")
    assert adaptool("verify", "--exact", BASE, bare, out)["ok"]
    assert not adaptool("verify", "--alpha", "8", BASE, bare, out, code=1)["ok"]
    adaptool("unmerge", "--alpha", "16", out, bare, tmp_path / "back")
    adaptool("unmerge", out, bare, tmp_path / "again")
    assert _equal(tmp_path / "back", tmp_path / "again")
    other = adaptool("unmerge", "--alpha", "8", out, bare, tmp_path / "no", code=4)
    assert other["error"]["code"] == "adapter-differs"
    assert "merged with 16" in other["error"]["message"]


def test_merge_scale_is_each_adapters_in_their_order(
    adaptool: Adaptool, bare: Path, tmp_path: Path
) -> None:
    """The second value is the second adapter's."""
    out = tmp_path / "out"
    adaptool("merge", BASE, ADAPTER, tmp_path / "expected", "--weight", "0.75")
    half = f"{bare}=0.5"
    adaptool("merge", "--scale", "1", "--scale", "1", BASE, bare, out, "--add", half)
    assert _equal(out, tmp_path / "expected")
    assert adaptool("verify", "--add", bare, BASE, bare, out)["ok"]
    wrong = adaptool("verify", "--scale", "1", "--scale=3", "--add", bare, BASE, bare, out, code=1)
    assert not wrong["ok"]
    adaptool("unmerge", "--scale=1", "--scale", "1", "--add", bare, out, bare, tmp_path / "back")


def test_unmerge_allow_drop_and_expert_packing(
    adaptool: Adaptool, odd: Path, tmp_path: Path
) -> None:
    """As the merge had them, or not given."""
    out = tmp_path / "out"
    adaptool("merge", "--allow-drop", "*lora_Q*", BASE, odd, out)
    adaptool("unmerge", "--allow-drop", "*lora_Q*", out, odd, tmp_path / "one")
    adaptool("unmerge", "--expert-packing", "peft", out, odd, tmp_path / "two")
    adaptool("unmerge", out, odd, tmp_path / "three")
    assert _equal(tmp_path / "one", tmp_path / "two")
    assert _equal(tmp_path / "one", tmp_path / "three")
    said = adaptool("unmerge", "--expert-packing=unsloth", out, odd, tmp_path / "no", code=4)
    assert "--expert-packing" in said["error"]["hint"]


def test_diff_alpha_scale_and_the_rest(
    adaptool: Adaptool, bare: Path, odd: Path, tmp_path: Path
) -> None:
    """In the order of the two: the fixture's alpha for the second makes them equal."""
    assert adaptool("diff", ADAPTER, bare, code=3)["error"]["code"] == "config-missing"
    same = adaptool("diff", "--alpha=1", "--alpha", "16", ADAPTER, bare)
    assert same["relative_error"] == 0
    twice = adaptool("diff", "--scale", "1", "--scale", "2", bare, bare)
    assert twice["relative_error"] == pytest.approx(1)
    dropped = adaptool("diff", "--allow-drop", "*lora_Q*", ADAPTER, odd)
    assert dropped["relative_error"] == 0
    pair = small_pairs.write("experts", tmp_path / "pair")
    said = adaptool("diff", "--expert-packing", "unsloth", pair.adapter, pair.adapter)
    assert said["relative_error"] == 0


def test_extract_allow_drop(adaptool: Adaptool, tmp_path: Path) -> None:
    """A tensor that the base lacks is refused, or left out; the receipt names it."""
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    shutil.copy(BASE / "config.json", tuned)
    tensors = _weights(BASE)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file(
        tensors | {name: tensors[name] * 2, "strange.weight": torch.ones(4, 4)},
        tuned / "model.safetensors",
        metadata={"format": "pt"},
    )
    refused = adaptool("extract", "--rank", "2", BASE, tuned, tmp_path / "no", code=4)
    assert "--allow-drop 'strange.weight'" in refused["error"]["hint"]
    out = tmp_path / "out"
    said = adaptool("extract", "--rank=2", "--allow-drop", "strange.*", BASE, tuned, out)
    assert [row["module"] for row in said["modules"]] == [name.removesuffix(".weight")]
    assert '"strange.weight"' in (out / "adaptool.json").read_text()


def test_folder_without_a_config_takes_an_alpha(adaptool: Adaptool, tmp_path: Path) -> None:
    """Where adapter_config.json is lost, what the file means is said on the command line."""
    folder = tmp_path / "lost"
    folder.mkdir()
    shutil.copy(ADAPTER / "adapter_model.safetensors", folder)
    assert adaptool("inspect", folder)["scaling"] is None
    adaptool("merge", "--alpha=16", BASE, folder, tmp_path / "out")
    adaptool("merge", BASE, ADAPTER, tmp_path / "expected")
    assert _equal(tmp_path / "out", tmp_path / "expected")


@pytest.mark.slow
def test_one_cause_is_said_once_and_names_the_users_pickle(
    adaptool: Adaptool, tmp_path: Path
) -> None:
    """Fourteen modules without a scale are one error, of the file that was given."""
    path = tmp_path / "adapter.bin"
    torch.save(load_file(ADAPTER / "adapter_model.safetensors"), path)
    bare = {
        name.removeprefix("base_model.model.").removesuffix(".weight"): value
        for name, value in load_file(ADAPTER / "adapter_model.safetensors").items()
    }
    torch.save(bare, tmp_path / "loralib.bin")
    for file in (path, tmp_path / "loralib.bin"):
        said = adaptool("validate", "--allow-pickle", file, code=1)
        assert [each["file"] for each in said["findings"]] == [str(file)]
        out = tmp_path / "out"
        error = adaptool("merge", "--allow-pickle", BASE, file, out, code=3)
        assert [each["file"] for each in error["errors"]] == [str(file)]


def test_convert_does_not_list_what_it_dropped_as_carried(
    adaptool: Adaptool, tmp_path: Path
) -> None:
    """The norm that MLX has no slot for is left out, and not carried."""
    folder = shutil.copytree(ADAPTER, tmp_path / "with-norm")
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    name = "base_model.model.model.norm.weight"
    save_file(
        tensors | {name: torch.from_numpy(np.ones(64, "f4"))}, folder / "adapter_model.safetensors"
    )
    said = adaptool("convert", "--to", "mlx", "--allow-drop", name, folder, tmp_path / "out")
    assert said["carried"] == []
