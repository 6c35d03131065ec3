"""Every flag that the contract promises exists and does what it says.

`PROMISED` is the contract's list.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from safetensors import deserialize
from safetensors.torch import load_file

import small_pairs
from adaptool.cli.main import group, main
from command_line import ADAPTER, BASE
from make_fixtures import Tensor, save_tensors

COMMON = {"--json", "--quiet", "--summary"}
MACHINE = {"--device", "--threads"}
WRITING = {"--overwrite", "--dry-run"}
ATTESTING = {"--checksum", "--provenance", "--bom"}
READING = {"--alpha", "--scale", "--expert-packing", "--allow-drop", "--allow-pickle"}
PROMISED = {
    "diff": {*COMMON, *MACHINE, *READING, "--exit-code", "--base"},
    "inspect": {*COMMON, *READING, "--values", "--html", "--base", "--overwrite"},
    "validate": {
        *COMMON,
        *READING,
        "--base",
        "--strict",
        "--values",
        "--target",
        "--containing",
        "--checksum",
    },
    "merge": {
        *COMMON,
        *MACHINE,
        "--overwrite",
        "--dry-run",
        *READING,
        "--weight",
        "--add",
        "--dtype",
        "--precision",
        "--max-shard-size",
        "--tie",
        "--quantized",
        "--allow-lossy",
        "--qlora-base",
        "--init-adapter",
        "--reversible",
        "--skip-unmatched",
        *ATTESTING,
        "--private",
    },
    "resize": {
        *COMMON,
        *MACHINE,
        *WRITING,
        *ATTESTING,
        "--private",
        *READING,
        "--rank",
        "--energy",
        "--error",
        "--ratio",
        "--budget",
        "--keep",
        "--min-rank",
        "--max-rank",
        "--dtype",
        "--base",
    },
    "combine": {
        *COMMON,
        *MACHINE,
        *WRITING,
        *ATTESTING,
        "--private",
        *READING,
        "--weights",
        "--method",
        "--rank",
        "--density",
        "--majority-sign",
        "--seed",
        "--dtype",
        "--out",
        "--base",
    },
    "convert": {
        *COMMON,
        *MACHINE,
        *WRITING,
        *ATTESTING,
        "--private",
        *READING,
        "--to",
        "--as",
        "--rank",
        "--energy",
        "--base",
        "--bake-scale",
        "--init-adapter",
    },
    "extract": {
        *COMMON,
        *MACHINE,
        *WRITING,
        *ATTESTING,
        "--private",
        "--rank",
        "--energy",
        "--exact",
        "--dtype",
        "--allow-drop",
        "--allow-pickle",
    },
    "pull": {*COMMON, *WRITING, "--checksum", "--require-pinned", "--allow-pickle", "--max-bytes"},
    "push": {*COMMON, "--private", "--create-pr", "--message", "--dry-run"},
    "run": {*COMMON, *MACHINE, *WRITING, "--set", "--force", "--schema"},
    "unmerge": {
        *COMMON,
        *MACHINE,
        *WRITING,
        *READING,
        "--checksum",
        "--private",
        "--add",
        "--init-adapter",
        "--exact",
    },
    "verify": {*COMMON, *MACHINE, *READING, "--add", "--init-adapter", "--exact"},
}
# Every other option of the merge, where a receipt does not give it.
GIVEN_TO_VERIFY = {
    "--qlora-base",
    "--weight",
    "--dtype",
    "--precision",
    "--tie",
    "--quantized",
    "--skip-unmatched",
}
COMMANDS = sorted(PROMISED)

Adaptool = Callable[..., Any]


def _flags(name: str) -> set[str]:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return {
        max(parameter.opts, key=len)
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }


def test_every_command_stands_in_the_list() -> None:
    """A new command brings its flags into this test."""
    assert group.list_commands(click.Context(group)) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_the_flags_it_was_promised_and_no_others(name: str) -> None:
    """What stands in the contract is there, and nothing else."""
    more = GIVEN_TO_VERIFY if name == "verify" else set()
    assert _flags(name) == PROMISED[name] | more


def test_every_flag_is_used_by_a_test_below() -> None:
    """The list is walked: for each command and flag a test in test_flags*.py gives it."""
    used = {
        (call.args[0].value, argument.value.partition("=")[0])
        for file in Path(__file__).parent.glob("test_flags*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "adaptool"
        for argument in call.args
        if isinstance(argument, ast.Constant)
        and isinstance(argument.value, str)
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }
    assert [
        (name, flag)
        for name in COMMANDS
        for flag in sorted(_flags(name))
        if (name, flag) not in used
    ] == []


def _tensors(folder: Path) -> dict[str, Any]:
    """Name -> (dtype, shape, bytes) of every tensor in `folder`."""
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for file in sorted(folder.glob("*.safetensors"))
        for name, entry in deserialize(file.read_bytes())
    }


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _receipt(folder: Path) -> Any:
    return json.loads((folder / "adaptool.json").read_text())


def _adapter(folder: Path, edit: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Path:
    """A copy of the fixture adapter with other tensors."""
    shutil.copytree(ADAPTER, folder)
    file = folder / "adapter_model.safetensors"
    names = {"F32": "float32", "BF16": "bfloat16"}
    found = {
        name: (names[dtype], shape, content)
        for name, (dtype, shape, content) in _tensors(ADAPTER).items()
    }
    save_tensors(file, edit(found))
    return folder


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures, merged with no flag at all."""
    out = tmp_path_factory.mktemp("merged") / "out"
    assert main(["merge", str(BASE), str(ADAPTER), str(out), "--quiet"]) == 0
    return out


def test_merge_json(adaptool: Adaptool, tmp_path: Path) -> None:
    """The contract's keys, and counts that fit the fixture: 21 tensors, 14 adapted."""
    said = adaptool("merge", "--json", BASE, ADAPTER, tmp_path / "out")
    assert said["schema"] == 1
    assert said["out"] == str(tmp_path / "out")
    assert said["tensors"] == {"total": 21, "touched": 14, "copied": 7}
    assert set(said["stats"]) == {"changed_fraction", "retained"}
    assert {"bytes", "seconds", "device", "findings"} <= set(said)


def test_merge_warns_where_rounding_leaves_little(adaptool: Adaptool, tmp_path: Path) -> None:
    """A weak adapter vanishes between two numbers of bfloat16, and not in float32."""
    weak = ("merge", "--json", "--weight", "0.0001", BASE, ADAPTER)
    said = adaptool(*weak, tmp_path / "out")
    assert said["stats"]["retained"] < 0.5
    (found,) = (each for each in said["findings"] if each["code"] == "delta-lost")
    assert found["severity"] == "warning"
    assert "--dtype float32" in found["hint"]
    said = adaptool(*weak, tmp_path / "wide", "--dtype", "float32")
    assert "delta-lost" not in {each["code"] for each in said["findings"]}
    said = adaptool("merge", "--json", BASE, ADAPTER, tmp_path / "strong")
    assert "delta-lost" not in {each["code"] for each in said["findings"]}


def test_merge_says_what_it_did(adaptool: Adaptool, tmp_path: Path) -> None:
    """People get one line."""
    out, _ = adaptool("merge", BASE, ADAPTER, tmp_path / "out", text=True)
    assert out.startswith(f"merged 14 of 21 tensors into {tmp_path / 'out'} (")
    assert len(out.splitlines()) == 1


def test_merge_quiet(adaptool: Adaptool, tmp_path: Path) -> None:
    """Nothing is said, the work is done."""
    said = adaptool("merge", "--quiet", BASE, ADAPTER, tmp_path / "out", text=True)
    assert said == ("", "")
    assert (tmp_path / "out" / "config.json").exists()


def test_merge_weight(adaptool: Adaptool, tmp_path: Path) -> None:
    """Weight 0 gives the base's bytes."""
    adaptool("merge", "--weight", "0", BASE, ADAPTER, tmp_path / "out")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (BASE / name).read_bytes()


def test_merge_add(adaptool: Adaptool, tmp_path: Path, merged: Path) -> None:
    """Two halves of an adapter are the adapter."""
    half = f"{ADAPTER}=0.5"
    adaptool("merge", BASE, ADAPTER, tmp_path / "out", "--weight=0.5", "--add", half)
    assert _tensors(tmp_path / "out") == _tensors(merged)


def test_merge_dtype(adaptool: Adaptool, tmp_path: Path) -> None:
    """Every tensor is written in the dtype asked for, and a copied one keeps its value."""
    adaptool("merge", "--dtype", "float32", BASE, ADAPTER, tmp_path / "out")
    found = _tensors(tmp_path / "out")
    assert {dtype for dtype, _, _ in found.values()} == {"F32"}
    _, _, narrow = _tensors(BASE)["model.norm.weight"]
    _, _, wide = found["model.norm.weight"]
    expected = (np.frombuffer(narrow, "<u2").astype("<u4") << 16).tobytes()
    assert wide == expected


def test_merge_precision(adaptool: Adaptool, tmp_path: Path) -> None:
    """The receipt says which arithmetic was used."""
    adaptool("merge", "--precision", "float32", BASE, ADAPTER, tmp_path / "out")
    assert _receipt(tmp_path / "out")["options"]["precision"] == "float32"


def test_merge_max_shard_size(adaptool: Adaptool, tmp_path: Path, merged: Path) -> None:
    """No shard is larger than asked, and the tensors are the same."""
    adaptool("merge", "--max-shard-size", "50KB", BASE, ADAPTER, tmp_path / "out")
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert max(sum(len(entry[2]) for entry in _one(shard).values()) for shard in shards) <= 50_000
    assert _tensors(tmp_path / "out") == _tensors(merged)


def _one(file: Path) -> dict[str, Any]:
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in deserialize(file.read_bytes())
    }


@pytest.fixture
def tied(tmp_path: Path) -> tuple[Path, Path]:
    """The base with tied embeddings, and an adapter on lm_head, which it has no tensor for."""
    base = tmp_path / "tied"
    base.mkdir()
    for file in ("config.json", "model-00001-of-00002.safetensors"):
        shutil.copy(BASE / file, base / file)
    names = {"BF16": "bfloat16"}
    every = {
        name: (names[dtype], shape, content)
        for name, (dtype, shape, content) in _tensors(BASE).items()
        if name != "lm_head.weight"
    }
    (base / "model-00001-of-00002.safetensors").unlink()
    save_tensors(base / "model.safetensors", every)
    config = json.loads((BASE / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))

    def only_head(_: dict[str, Tensor]) -> dict[str, Tensor]:
        row = np.full(8 * 64, 0.5, "<f4").tobytes()
        column = np.full(256 * 8, 0.25, "<f4").tobytes()
        prefix = "base_model.model.lm_head"
        return {
            f"{prefix}.lora_A.weight": ("float32", (8, 64), row),
            f"{prefix}.lora_B.weight": ("float32", (256, 8), column),
        }

    adapter = _adapter(tmp_path / "head", only_head)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["lm_head"]})
    )
    return base, adapter


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """The base under a scheme that nobody knows."""
    base = tmp_path / "quantized"
    shutil.copytree(BASE, base)
    config = json.loads((BASE / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "of tomorrow"}
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_merge_quantized(adaptool: Adaptool, tmp_path: Path, quantized: Path) -> None:
    """A plain base has nothing to decode; an unknown scheme is refused by name."""
    for mode in ("all", "touched"):
        adaptool("merge", "--quantized", mode, BASE, ADAPTER, tmp_path / mode)
    assert _tensors(tmp_path / "all") == _tensors(tmp_path / "touched")
    refused = adaptool("merge", "--quantized=all", quantized, ADAPTER, tmp_path / "no", code=4)
    assert refused["error"]["code"] == "base-quantized"
    assert "of tomorrow" in refused["error"]["message"]


def test_verify_quantized(adaptool: Adaptool, tmp_path: Path) -> None:
    """Given or from the receipt, a plain base is compared as it is."""
    adaptool("merge", BASE, ADAPTER, tmp_path / "out")
    assert adaptool("verify", "--quantized", "touched", BASE, ADAPTER, tmp_path / "out")["ok"]


def test_merge_expert_packing(adaptool: Adaptool, tmp_path: Path) -> None:
    """Stacked experts come out otherwise, and nothing else does; the default is PEFT's."""
    pair = small_pairs.write("experts", tmp_path / "pair")
    for packing in ("peft", "unsloth"):
        out = tmp_path / packing
        adaptool("merge", "--expert-packing", packing, pair.base, pair.adapter, out)
        assert _receipt(out)["options"]["expert_packing"] == packing
    adaptool("merge", pair.base, pair.adapter, tmp_path / "out")
    assert _tensors(tmp_path / "out") == _tensors(tmp_path / "peft")
    changed = {
        name
        for name, value in _tensors(tmp_path / "unsloth").items()
        if value != _tensors(tmp_path / "peft")[name]
    }
    assert changed == {name for name in _tensors(pair.base) if ".experts." in name}


def test_verify_expert_packing(adaptool: Adaptool, tmp_path: Path) -> None:
    """From the receipt; another one given makes another model."""
    pair = small_pairs.write("experts", tmp_path / "pair")
    out = tmp_path / "out"
    adaptool("merge", "--expert-packing", "unsloth", pair.base, pair.adapter, out)
    assert adaptool("verify", pair.base, pair.adapter, out)["ok"]
    said = adaptool("verify", "--expert-packing", "peft", pair.base, pair.adapter, out, code=1)
    assert not said["ok"]


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """The adapter as an older PEFT saved it."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(ADAPTER / "adapter_config.json", folder)
    torch.save(load_file(ADAPTER / "adapter_model.safetensors"), folder / "adapter_model.bin")
    return folder


def test_allow_pickle(adaptool: Adaptool, tmp_path: Path, pickled: Path) -> None:
    """Without it a pickle is refused by every command; with it the result is the same."""
    out, expected = tmp_path / "out", tmp_path / "expected"
    assert adaptool("merge", BASE, pickled, out, code=3)["error"]["code"] == "pickle-only"
    adaptool("merge", "--allow-pickle", BASE, pickled, out)
    adaptool("merge", BASE, ADAPTER, expected)
    assert _tensors(out) == _tensors(expected)
    assert adaptool("verify", "--allow-pickle", BASE, pickled, out)["ok"]
    assert adaptool("inspect", "--allow-pickle", pickled)["module_count"] == 14
    assert adaptool("validate", "--allow-pickle", pickled)["ok"]


def test_merge_and_verify_qlora_base(adaptool: Adaptool, tmp_path: Path) -> None:
    """Other weights below the same delta; the ratio of the 4-bit error is printed and recorded."""
    out = tmp_path / "out"
    body = adaptool("merge", "--qlora-base", "dequantized", BASE, ADAPTER, out)
    assert body["stats"]["quantization_ratio"] > 0
    receipt = json.loads((out / "adaptool.json").read_text())
    assert receipt["options"]["qlora_base"] == "dequantized"
    assert receipt["stats"]["quantization_ratio"] == body["stats"]["quantization_ratio"]
    assert adaptool("verify", BASE, ADAPTER, out)["ok"]
    assert not adaptool("verify", "--qlora-base", "original", BASE, ADAPTER, out, code=1)["ok"]
    said, _ = adaptool(
        "merge", "--qlora-base=dequantized", BASE, ADAPTER, tmp_path / "again", text=True
    )
    assert "4-bit error" in said


def test_merge_init_adapter(adaptool: Adaptool, tmp_path: Path) -> None:
    """An adapter that did not move since it began leaves the base as it was."""
    out = tmp_path / "out"
    adaptool("merge", "--init-adapter", ADAPTER, BASE, ADAPTER, out)
    assert _tensors(out) == _tensors(BASE)


def test_verify_init_adapter(adaptool: Adaptool, tmp_path: Path) -> None:
    """The receipt does not say where the initial adapter lies, so it is given again."""
    out = tmp_path / "out"
    adaptool("merge", "--init-adapter", ADAPTER, BASE, ADAPTER, out)
    assert adaptool("verify", "--init-adapter", ADAPTER, BASE, ADAPTER, out)["ok"]
    assert not adaptool("verify", BASE, ADAPTER, out, code=1)["ok"]


def test_merge_tie(adaptool: Adaptool, tmp_path: Path, tied: tuple[Path, Path]) -> None:
    """`error` refuses; `untie` writes the head and says so in the config; `keep` changes both."""
    base, adapter = tied
    refused = adaptool("merge", "--tie", "error", base, adapter, tmp_path / "no", code=4)
    assert refused["error"]["code"] == "tied-weights"
    adaptool("merge", "--tie", "untie", base, adapter, tmp_path / "untied")
    untied = _tensors(tmp_path / "untied")
    assert untied["lm_head.weight"] != untied["model.embed_tokens.weight"]
    assert untied["model.embed_tokens.weight"] == _tensors(base)["model.embed_tokens.weight"]
    config = json.loads((tmp_path / "untied" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    adaptool("merge", "--tie", "keep", base, adapter, tmp_path / "kept")
    kept = _tensors(tmp_path / "kept")
    assert "lm_head.weight" not in kept
    assert kept["model.embed_tokens.weight"] == untied["lm_head.weight"]


@pytest.fixture
def too_deep(tmp_path: Path) -> Path:
    """An adapter whose second layer is a ninth, which the base lacks."""
    return _adapter(
        tmp_path / "deep",
        lambda tensors: {
            name.replace("layers.1.", "layers.8."): tensor for name, tensor in tensors.items()
        },
    )


def test_merge_skip_unmatched(adaptool: Adaptool, tmp_path: Path, too_deep: Path) -> None:
    """Exit 4 without the flag; with it the modules are left out, and every one is told."""
    refused = adaptool("merge", BASE, too_deep, tmp_path / "no", code=4)
    assert refused["error"]["code"] == "module-not-in-base"
    assert len(refused["errors"]) == 7
    said = adaptool("merge", "--skip-unmatched", BASE, too_deep, tmp_path / "out")
    assert said["tensors"]["touched"] == 7
    assert "module-skipped" in {finding["code"] for finding in said["findings"]}


@pytest.fixture
def with_extra(tmp_path: Path) -> Path:
    """An adapter with a tensor that no layout knows."""
    extra: Tensor = ("float32", (4,), bytes(16))
    return _adapter(
        tmp_path / "extra", lambda tensors: {**tensors, "base_model.model.extra": extra}
    )


def test_merge_allow_drop(adaptool: Adaptool, tmp_path: Path, with_extra: Path) -> None:
    """What would be lost makes the merge fail, unless a pattern allows it; the receipt knows."""
    refused = adaptool("merge", BASE, with_extra, tmp_path / "no", "--allow-drop=*.other", code=4)
    assert refused["error"]["tensor"] == "base_model.model.extra"
    adaptool("merge", BASE, with_extra, tmp_path / "out", "--allow-drop", "*.ext*")
    assert "base_model.model.extra" in json.dumps(_receipt(tmp_path / "out"))


def test_merge_checksum(adaptool: Adaptool, tmp_path: Path) -> None:
    """SHA256SUMS names every other file with its digest, and the receipt has the same."""
    out = tmp_path / "out"
    adaptool("merge", "--checksum", BASE, ADAPTER, out)
    lines = (out / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    shards = {path.name for path in out.glob("*.safetensors")}
    assert shards <= set(sums)
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    recorded = {entry["name"]: entry.get("sha256") for entry in _receipt(out)["outputs"]}
    assert {name: recorded[name] for name in shards} == {name: sums[name] for name in shards}


def test_merge_overwrite(adaptool: Adaptool, tmp_path: Path) -> None:
    """An output that exists is exit 5; with the flag a merge of ours is replaced, nothing else."""
    out = tmp_path / "out"
    adaptool("merge", "--weight=0", BASE, ADAPTER, out)
    before = _files(out)
    assert adaptool("merge", BASE, ADAPTER, out, code=5)["error"]["code"] == "output-exists"
    assert _files(out) == before
    adaptool("merge", "--overwrite", BASE, ADAPTER, out)
    assert _files(out) != before
    (out / "mine.txt").write_text("not adaptool's")
    adaptool("merge", "--overwrite", BASE, ADAPTER, out, code=5)
    assert (out / "mine.txt").exists()


def test_merge_dry_run(adaptool: Adaptool, tmp_path: Path) -> None:
    """The plan has a row for every tensor of the output, and nothing is written."""
    said = adaptool("merge", "--dry-run", BASE, ADAPTER, tmp_path / "out")
    assert {row["tensor"] for row in said["plan"]["tensors"]} == set(_tensors(BASE))
    out, _ = adaptool("merge", "--dry-run", BASE, ADAPTER, tmp_path / "out", text=True)
    assert "model.layers.1.mlp.down_proj.weight" in out
    assert out.splitlines()[-1].startswith("would merge 14 of 21 tensors")
    assert list(tmp_path.iterdir()) == []


def test_merge_device(adaptool: Adaptool, tmp_path: Path) -> None:
    """The device asked for is used, or is exit 7; never another."""
    said = adaptool("merge", "--device", "cpu", BASE, ADAPTER, tmp_path / "out")
    assert said["device"] == "cpu"
    said = adaptool("merge", "--device", "cuda:99", BASE, ADAPTER, tmp_path / "no", code=7)
    assert said["error"]["code"] == "device-missing"


def test_merge_threads(adaptool: Adaptool, tmp_path: Path, merged: Path) -> None:
    """Bytes do not depend on the number of workers."""
    for count in ("1", "3"):
        adaptool("merge", "--threads", count, BASE, ADAPTER, tmp_path / count)
        assert _files(tmp_path / count) == _files(merged)


def test_verify_json(adaptool: Adaptool, merged: Path) -> None:
    """A merge of ours is what its inputs make."""
    said = adaptool("verify", "--json", BASE, ADAPTER, merged)
    assert said["ok"] is True
    assert said["tensors"] == {"checked": 21, "different": 0}
    assert said["different"] == []


def test_verify_quiet(adaptool: Adaptool, merged: Path) -> None:
    """The exit code says it all."""
    assert adaptool("verify", "--quiet", BASE, ADAPTER, merged, text=True) == ("", "")
    assert adaptool("verify", "--quiet", BASE, ADAPTER, BASE, code=1, text=True)[0] == ""


def test_verify_names_what_differs(adaptool: Adaptool, merged: Path) -> None:
    """The base is not the merge: exit 1 and a row for a changed tensor."""
    out, _ = adaptool("verify", BASE, ADAPTER, BASE, code=1, text=True)
    assert "model.layers.0.self_attn.q_proj.weight" in out
    assert "differ" in out.splitlines()[-1]
    out, _ = adaptool("verify", BASE, ADAPTER, merged, text=True)
    assert out == "ok: 21 tensors checked\n"


def test_verify_exact(adaptool: Adaptool, merged: Path, tmp_path: Path) -> None:
    """One step of the dtype passes without the flag and not with it."""
    assert adaptool("verify", "--exact", BASE, ADAPTER, merged)["ok"] is True
    nudged = tmp_path / "nudged"
    shutil.copytree(merged, nudged)
    shard = nudged / "model-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    assert adaptool("verify", BASE, ADAPTER, nudged)["ok"] is True
    said = adaptool("verify", BASE, ADAPTER, nudged, "--exact", code=1)
    assert [entry["max_ulp"] for entry in said["different"]] == [1]


def test_verify_weight(adaptool: Adaptool, merged: Path) -> None:
    """What is given wins over the receipt."""
    assert adaptool("verify", "--weight", "1", BASE, ADAPTER, merged)["ok"] is True
    assert adaptool("verify", "--weight", "9", BASE, ADAPTER, merged, code=1)["ok"] is False


def test_verify_add(adaptool: Adaptool, tmp_path: Path, merged: Path) -> None:
    """The adapters of the merge are named again; their weights stand in the receipt."""
    out = tmp_path / "out"
    adaptool("merge", BASE, ADAPTER, out, "--weight=0.25", f"--add={ADAPTER}=0.5")
    adaptool("verify", BASE, ADAPTER, out, "--add", ADAPTER)
    adaptool("verify", BASE, ADAPTER, out, code=2)
    adaptool("verify", BASE, ADAPTER, merged, "--add", ADAPTER, code=2)
    (out / "adaptool.json").unlink()
    adaptool("verify", BASE, ADAPTER, out, "--weight=0.25", f"--add={ADAPTER}=0.5")
    adaptool("verify", BASE, ADAPTER, out, "--weight=0.25", f"--add={ADAPTER}=9", code=1)


def test_verify_dtype(adaptool: Adaptool, merged: Path) -> None:
    """A dtype that is not the merge's makes every tensor different."""
    said = adaptool("verify", "--dtype", "float32", BASE, ADAPTER, merged, code=1)
    assert said["tensors"] == {"checked": 21, "different": 21}


def test_verify_precision(adaptool: Adaptool, merged: Path) -> None:
    """The fast arithmetic lies within one step of the exact one."""
    assert adaptool("verify", "--precision", "float32", BASE, ADAPTER, merged)["ok"] is True


def test_verify_tie(adaptool: Adaptool, tmp_path: Path, tied: tuple[Path, Path]) -> None:
    """The receipt says how ties were treated; another treatment is another model."""
    base, adapter = tied
    out = tmp_path / "kept"
    adaptool("merge", "--tie=keep", base, adapter, out)
    assert adaptool("verify", base, adapter, out)["ok"] is True
    assert adaptool("verify", base, adapter, out, "--tie", "untie", code=1)["ok"] is False


def test_verify_skip_unmatched(adaptool: Adaptool, tmp_path: Path, too_deep: Path) -> None:
    """From the receipt or from the flag; without either it is exit 4."""
    out = tmp_path / "out"
    adaptool("merge", "--skip-unmatched", BASE, too_deep, out)
    adaptool("verify", BASE, too_deep, out)
    (out / "adaptool.json").unlink()
    adaptool("verify", BASE, too_deep, out, code=4)
    adaptool("verify", "--skip-unmatched", BASE, too_deep, out)


def test_verify_allow_drop(adaptool: Adaptool, tmp_path: Path, with_extra: Path) -> None:
    """From the receipt or from the flag; without either it is exit 4."""
    out = tmp_path / "out"
    adaptool("merge", "--allow-drop=*.extra", BASE, with_extra, out)
    adaptool("verify", BASE, with_extra, out)
    (out / "adaptool.json").unlink()
    adaptool("verify", BASE, with_extra, out, code=4)
    adaptool("verify", BASE, with_extra, out, "--allow-drop", "*.extra")


def test_verify_device(adaptool: Adaptool, merged: Path) -> None:
    """The device asked for is used, or is exit 7."""
    assert adaptool("verify", "--device", "cpu", BASE, ADAPTER, merged)["ok"] is True
    said = adaptool("verify", "--device", "cuda:99", BASE, ADAPTER, merged, code=7)
    assert said["error"]["code"] == "device-missing"


def test_verify_threads(adaptool: Adaptool, merged: Path) -> None:
    """Any number of workers finds the same."""
    assert adaptool("verify", "--threads", "3", BASE, ADAPTER, merged)["ok"] is True


@pytest.fixture
def with_nan(tmp_path: Path) -> Path:
    """An adapter with one factor that is not finite, which no header shows."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    bad: Tensor = ("float32", (8, 64), np.full(512, np.nan, "<f4").tobytes())
    return _adapter(tmp_path / "nan", lambda tensors: {**tensors, name: bad})


def test_validate_json(adaptool: Adaptool) -> None:
    """Nothing is wrong with the fixture."""
    said = adaptool("validate", "--json", ADAPTER)
    assert (said["schema"], said["ok"]) == (1, True)
    assert [each for each in said["findings"] if each["severity"] == "error"] == []


def test_validate_quiet(adaptool: Adaptool, with_nan: Path) -> None:
    """The exit code says it all."""
    assert adaptool("validate", "--quiet", ADAPTER, text=True) == ("", "")
    assert adaptool("validate", "--quiet", with_nan, "--values", code=1, text=True) == ("", "")


def test_validate_values(adaptool: Adaptool, with_nan: Path) -> None:
    """NaN is found where the weights are read, and only there."""
    adaptool("validate", with_nan)
    said = adaptool("validate", "--values", with_nan, code=1)
    assert [each["code"] for each in said["findings"] if each["severity"] == "error"] == [
        "not-finite"
    ]
    out, _ = adaptool("validate", with_nan, "--values", code=1, text=True)
    assert "error[not-finite]: " in out
    assert out.splitlines()[-1].startswith("not ok: 1 error")


def test_validate_base(adaptool: Adaptool, too_deep: Path) -> None:
    """A module that the base lacks is seen with the base at hand."""
    adaptool("validate", too_deep)
    said = adaptool("validate", too_deep, "--base", BASE, code=1)
    assert "module-not-in-base" in {finding["code"] for finding in said["findings"]}


def test_validate_strict(adaptool: Adaptool, tmp_path: Path) -> None:
    """A warning is exit 0 without the flag and exit 1 with it."""
    # A negative alpha is legal and unusual: the adapter is subtracted.
    folder = _adapter(tmp_path / "negative", lambda tensors: tensors)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"lora_alpha": -16}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    said = adaptool("validate", folder)
    assert [each["severity"] for each in said["findings"]] == ["warning"]
    assert adaptool("validate", "--strict", folder, code=1)["ok"] is False


def test_validate_target(adaptool: Adaptool, tmp_path: Path) -> None:
    """What is fine here can be mis-scaled there: exit 1, the command that mends it; exit 2 else."""
    folder = _adapter(tmp_path / "rslora", lambda tensors: tensors)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert adaptool("validate", "--target", "vllm", folder)["findings"] == []
    (finding,) = adaptool("validate", folder, "--target", "sglang", code=1)["findings"]
    assert (finding["code"], finding["field"]) == ("target-mis-scaled", "use_rslora")
    assert "--bake-scale" in finding["hint"]
    assert adaptool("validate", folder, "--target", "vlm", code=2)["error"]["field"] == "--target"


def test_inspect_json(adaptool: Adaptool) -> None:
    """The contract's keys, for an adapter, for a checkpoint and for both at once."""
    adapter = adaptool("inspect", "--json", ADAPTER)
    assert (adapter["kind"], adapter["layout"], adapter["tuners"]) == (
        "adapter",
        "peft",
        {"lora": 14},
    )
    assert adapter["ranks"] == {"min": 8, "max": 8, "histogram": {"8": 14}}
    assert adapter["scaling"] == {"min": 2.0, "max": 2.0}
    assert adapter["targets"]["q_proj"] == 2
    assert adapter["module_count"] == 14
    checkpoint = adaptool("inspect", "--json", BASE)
    assert (checkpoint["kind"], checkpoint["tensor_count"]) == ("checkpoint", 21)
    assert len(checkpoint["shards"]) == 2
    assert checkpoint["parameters"] == 106816
    both = adaptool("inspect", "--json", ADAPTER, BASE)
    assert [item["kind"] for item in both["items"]] == ["adapter", "checkpoint"]
    assert both["similarity"] is None
    several = adaptool("inspect", "--json", "--values", ADAPTER, BASE, ADAPTER)
    assert several["similarity"][1] == [None, None, None]
    assert several["similarity"][0] == [1.0, None, pytest.approx(1.0)]


def test_inspect_groups_modules_for_people(adaptool: Adaptool) -> None:
    """One row for each kind of module, not one for each module."""
    out, _ = adaptool("inspect", ADAPTER, text=True)
    assert sum("_proj" in line for line in out.splitlines()) == 7


def test_inspect_quiet(adaptool: Adaptool) -> None:
    """What was asked for is shown; remarks are not."""
    out, err = adaptool("inspect", "--quiet", ADAPTER, text=True)
    assert out.startswith(f"{ADAPTER}: adapter")
    assert err == ""


def test_inspect_values(adaptool: Adaptool) -> None:
    """Norm and effective rank of every module, from the weights."""
    said = adaptool("inspect", "--values", ADAPTER)
    found = _tensors(ADAPTER)
    for row in said["modules"]:
        down, up = (_matrix(found, row["module"], factor) for factor in ("lora_A", "lora_B"))
        assert row["norm"] == pytest.approx(2.0 * np.linalg.norm(up @ down), rel=1e-6)
        assert 1.0 <= row["effective_rank"] <= 8.0
        assert row["nonfinite"] == 0
    assert all(row["norm"] is None for row in adaptool("inspect", ADAPTER)["modules"])


def _matrix(found: Mapping[str, Any], module: str, factor: str) -> Any:
    for name, (_, shape, content) in found.items():
        if name.endswith(f"{module}.{factor}.weight"):
            return np.frombuffer(content, "<f4").astype(float).reshape(shape)
    raise AssertionError(module)


def test_inspect_base(adaptool: Adaptool) -> None:
    """How large the adapter is, compared with its base."""
    said = adaptool("inspect", ADAPTER, "--base", BASE)
    assert said["share_of_base"] == pytest.approx(said["parameters"] / 106816)


def test_inspect_html(adaptool: Adaptool, tmp_path: Path) -> None:
    """One page that stands alone; it implies --values, and the answer names the file."""
    out = tmp_path / "page.html"
    said = adaptool("inspect", ADAPTER, "--html", out, "--base", BASE)
    assert said["html"] == str(out)
    assert all(row["norm"] > 0 and row["relative_norm"] > 0 for row in said["modules"])
    page = out.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(row["module"] in page for row in said["modules"])
    assert "<script" not in page


def test_inspect_overwrite(adaptool: Adaptool, tmp_path: Path) -> None:
    """A file that exists is exit 5 and stays; with the flag it is replaced."""
    out = tmp_path / "page.html"
    out.write_text("mine")
    refused = adaptool("inspect", ADAPTER, "--html", out, code=5)
    assert refused["error"]["code"] == "output-exists"
    assert out.read_text() == "mine"
    adaptool("inspect", ADAPTER, "--html", out, "--overwrite")
    assert out.read_text() != "mine"


def test_diff_json(adaptool: Adaptool, merged: Path) -> None:
    """The contract's keys, for adapters and for checkpoints."""
    same = adaptool("diff", "--json", ADAPTER, ADAPTER)
    assert (same["cosine"], same["relative_error"]) == (1.0, 0.0)
    assert (same["only_in_a"], same["only_in_b"]) == ([], [])
    assert len(same["modules"]) == 14
    assert {"module", "cosine", "relative_error"} <= set(same["modules"][0])
    other = adaptool("diff", "--json", BASE, merged)
    assert len(other["modules"]) == 21
    assert sum(row["relative_error"] > 0 for row in other["modules"]) == 14
    assert other["relative_error"] > 0


def test_diff_exit_code(adaptool: Adaptool, merged: Path) -> None:
    """Exit 1 where a number differs, and only where it was asked for."""
    adaptool("diff", BASE, merged)
    adaptool("diff", "--exit-code", BASE, merged, code=1)
    adaptool("diff", "--exit-code", ADAPTER, ADAPTER)


def test_diff_quiet(adaptool: Adaptool, merged: Path) -> None:
    """What was asked for is shown."""
    out, err = adaptool("diff", "--quiet", BASE, merged, text=True)
    assert out.splitlines()[-1].startswith("14 of 21 tensors differ, cosine ")
    assert err == ""
    out, _ = adaptool("diff", ADAPTER, ADAPTER, text=True)
    assert out == "equal: 14 modules compared\n"


def test_diff_allow_pickle(adaptool: Adaptool, pickled: Path) -> None:
    """The pickle holds what the file holds."""
    adaptool("diff", ADAPTER, pickled, code=3)
    assert adaptool("diff", "--allow-pickle", ADAPTER, pickled)["equal"]
