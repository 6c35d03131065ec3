"""Every flag of `convert`, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


def test_convert_to_peft_keeps_every_tensor(adaptool: Adaptool, tmp_path: Path) -> None:
    """The contract's keys; PEFT to PEFT is the same tensors."""
    result = adaptool("convert", ADAPTER, tmp_path / "out", "--to", "peft", "--json")
    assert {"out", "from", "to", "module_count", "carried", "findings"} <= result.keys()
    assert (result["from"], result["to"]) == ("peft", "peft")
    old, new = load_file(ADAPTER / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_convert_to_nothing_known_is_exit_2(adaptool: Adaptool, tmp_path: Path) -> None:
    """The layouts that can be written are named."""
    error = adaptool("convert", ADAPTER, tmp_path / "no", "--to", "onnx", code=2)["error"]
    assert "peft" in error["message"]


def test_convert_as_lora_with_rank_and_energy(adaptool: Adaptool, tmp_path: Path) -> None:
    """A rank is chosen only where modules become LoRA factors; --to lora is short for both."""
    adaptool("convert", ADAPTER, tmp_path / "no", "--to", "peft", "--rank", "2", code=2)
    adaptool("convert", ADAPTER, tmp_path / "no", "--to", "peft", "--energy", "0.5", code=2)
    one = adaptool("convert", ADAPTER, tmp_path / "a", "--to", "lora", "--rank", "2")
    two = adaptool(
        "convert", ADAPTER, tmp_path / "b", "--to", "peft", "--as", "lora", "--rank", "2"
    )
    assert one["relative_error"] == two["relative_error"] > 0
    left, right = ((tmp_path / name / WEIGHTS).read_bytes() for name in "ab")
    assert left == right
    adaptool("convert", ADAPTER, tmp_path / "c", "--to", "lora", "--energy", "0.5")


def test_convert_bake_scale(adaptool: Adaptool, tmp_path: Path) -> None:
    """alpha = r, no rsLoRA: the scale is in lora_B, the delta what it was."""
    folder = tmp_path / "rslora"
    folder.mkdir()
    config = json.loads((ADAPTER / "adapter_config.json").read_text()) | {"use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / WEIGHTS).write_bytes((ADAPTER / WEIGHTS).read_bytes())
    adaptool("convert", folder, tmp_path / "out", "--to", "peft", "--bake-scale")
    baked = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (baked["use_rslora"], baked["alpha_pattern"]) == (False, {})
    assert baked["lora_alpha"] == baked["r"]
    diff = adaptool("diff", folder, tmp_path / "out")
    assert diff["relative_error"] < 1e-6


def test_convert_dry_run_overwrite_quiet(adaptool: Adaptool, tmp_path: Path) -> None:
    """Nothing is written; then only what a receipt accounts for is replaced."""
    out = tmp_path / "out"
    adaptool("convert", ADAPTER, out, "--to", "peft", "--dry-run")
    assert not out.exists()
    assert adaptool("convert", ADAPTER, out, "--to", "peft", "--quiet", text=True) == ("", "")
    adaptool("convert", ADAPTER, out, "--to", "peft", code=5)
    adaptool("convert", ADAPTER, out, "--to", "peft", "--overwrite")


def test_convert_single_file_and_scale(adaptool: Adaptool, tmp_path: Path) -> None:
    """A file for OUT; --alpha and --scale for a file that carries none."""
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(ADAPTER / WEIGHTS), bare)
    adaptool("convert", bare, tmp_path / "no.st", "--to", "peft", code=3)
    adaptool("convert", bare, tmp_path / "a.st", "--to", "peft", "--alpha", "8")
    adaptool("convert", bare, tmp_path / "s.st", "--to", "peft", "--scale", "2")
    found = []
    for name in "as":
        with safe_open(tmp_path / f"{name}.st", "pt") as file:
            found.append(json.loads(file.metadata()["adapter_config"])["lora_alpha"])
    assert found[0] == 8


def test_convert_base_threads_device(adaptool: Adaptool, tmp_path: Path) -> None:
    """--base lends names; who works does not show in the bytes."""
    for name, threads in (("a", "1"), ("b", "2")):
        adaptool(
            "convert",
            ADAPTER,
            tmp_path / name,
            "--to",
            "lora",
            "--rank",
            "2",
            "--base",
            BASE,
            "--threads",
            threads,
            "--device",
            "cpu",
        )
    left, right = ((tmp_path / name / WEIGHTS).read_bytes() for name in "ab")
    assert left == right
    adaptool("convert", ADAPTER, tmp_path / "no", "--to", "peft", "--base", tmp_path / "x", code=2)


def test_convert_init_adapter(adaptool: Adaptool, tmp_path: Path) -> None:
    """Twice the rank; without the flag exit 4."""
    for name in ("begun", "trained"):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((ADAPTER / "adapter_config.json").read_text())
        config["init_lora_weights"] = "corda"
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / WEIGHTS).write_bytes((ADAPTER / WEIGHTS).read_bytes())
    adaptool("convert", tmp_path / "trained", tmp_path / "no", "--to", "lora", code=4)
    adaptool(
        "convert",
        tmp_path / "trained",
        tmp_path / "out",
        "--to",
        "lora",
        "--init-adapter",
        tmp_path / "begun",
    )
    old = json.loads((ADAPTER / "adapter_config.json").read_text())
    new = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert new["r"] == 2 * old["r"]


def test_convert_allow_drop_and_pickle(adaptool: Adaptool, tmp_path: Path) -> None:
    """What is not understood is lost only where that is allowed."""
    folder = tmp_path / "odd"
    folder.mkdir()
    tensors = load_file(ADAPTER / WEIGHTS)
    tensors["base_model.model.model.layers.0.lora_unheard_of"] = torch.zeros(2)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    out = tmp_path / "out"
    adaptool("convert", folder, out, "--to", "peft", code=3)
    adaptool("convert", folder, out, "--to", "peft", "--allow-pickle", code=3)
    adaptool(
        "convert", folder, out, "--to", "peft", "--allow-pickle", "--allow-drop", "*unheard_of"
    )
    receipt = json.loads((out / "adaptool.json").read_text())
    assert receipt["decisions"]["dropped"] == ["base_model.model.model.layers.0.lora_unheard_of"]


def test_convert_expert_packing(adaptool: Adaptool, tmp_path: Path) -> None:
    """Taken, and refused where it is no packing."""
    for packing, code in (("unsloth", 0), ("other", 2)):
        adaptool(
            "convert",
            ADAPTER,
            tmp_path / packing,
            "--to",
            "peft",
            "--expert-packing",
            packing,
            code=code,
        )


def test_convert_to_a_file_of_another_kind_is_exit_2(adaptool: Adaptool, tmp_path: Path) -> None:
    """A .gguf file holds GGUF, and GGUF goes into no other file."""
    for name, layout in (("x.gguf", "peft"), ("x.safetensors", "gguf")):
        adaptool("convert", ADAPTER, tmp_path / name, "--to", layout, "--base", BASE, code=2)
    adaptool("convert", ADAPTER, tmp_path / "y.gguf", "--to", "gguf", "--base", BASE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["y.gguf"]


def test_gguf_needs_the_base_in_every_command(adaptool: Adaptool, tmp_path: Path) -> None:
    """diff --base, resize --base, combine --base: the head counts undo q's and k's permutation."""
    gguf = tmp_path / "x.gguf"
    adaptool("convert", ADAPTER, gguf, "--to", "gguf", "--base", BASE)
    adaptool("diff", ADAPTER, gguf, code=4)
    assert adaptool("diff", ADAPTER, gguf, "--base", BASE)["relative_error"] < 1e-6
    adaptool("resize", gguf, tmp_path / "r.gguf", "--rank", "2", code=4)
    adaptool("resize", gguf, tmp_path / "r.gguf", "--rank", "2", "--base", BASE)
    adaptool("combine", gguf, ADAPTER, "-o", tmp_path / "sum", "--base", BASE)
    twice = adaptool("combine", ADAPTER, ADAPTER, "-o", tmp_path / "twice")
    assert twice["exact"]
    found = adaptool("diff", tmp_path / "sum", tmp_path / "twice", "--base", BASE)
    assert found["relative_error"] < 1e-6
