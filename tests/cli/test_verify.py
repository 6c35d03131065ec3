"""`adaptool verify` says yes to a right merge, whoever made it, and names what is wrong."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import run
from in_process import ask, done, refused
from small_pairs import INNER, Pair, drawn, save, write

TOUCHED = "model.layers.1.mlp.down_proj.weight"
COPIED = "model.layers.1.input_layernorm.weight"
LAST = "model-00003-of-00003.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write("lora", tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def merged(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    done("merge", pair.base, pair.adapter, out)
    return out


@pytest.fixture
def copy(merged: Path, tmp_path: Path) -> Path:
    """A merge to spoil."""
    shutil.copytree(merged, tmp_path / "copy")
    return tmp_path / "copy"


def different(pair: Pair, copy: Path, *flags: str, code: int = 1) -> dict[str, Any]:
    """What verify says differs, by tensor."""
    answer = ask("verify", pair.base, pair.adapter, copy, "--json", *flags)
    assert answer.code == code, answer.out
    body = answer.json
    assert body["ok"] is (code == 0)
    assert body["tensors"]["different"] == len(body["different"])
    return {each["tensor"]: each for each in body["different"]}


def held(folder: Path, tensor: str) -> tuple[Path, int, int]:
    """The file, offset and length of a tensor's bytes."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][tensor]
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8:start])[tensor]["data_offsets"]
    return file, start + begin, end - begin


def flip(folder: Path, tensor: str, element: int, bit: int) -> None:
    """Flip one bit of one 16-bit element."""
    file, offset, _ = held(folder, tensor)
    content = bytearray(file.read_bytes())
    content[offset + 2 * element + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("tensor", [TOUCHED, COPIED])
@pytest.mark.parametrize("element", [0, 17, -1])
@pytest.mark.parametrize("bit", [1, 6, 7, 14])
def test_one_flipped_bit_is_found(
    tensor: str, element: int, bit: int, pair: Pair, copy: Path
) -> None:
    """In a merged tensor and in a copied one: named, with its distance and share."""
    count = held(copy, tensor)[2] // 2
    flip(copy, tensor, element % count, bit)
    found = different(pair, copy)
    assert list(found) == [tensor]
    assert found[tensor]["max_ulp"] == 1 << bit
    assert found[tensor]["fraction"] == pytest.approx(1 / count)


@pytest.mark.parametrize("tensor", [TOUCHED, COPIED])
def test_last_bit_is_a_rounding_unless_bytes_are_asked_for(
    tensor: str, pair: Pair, copy: Path
) -> None:
    """One step may come from another arithmetic; --exact takes none."""
    flip(copy, tensor, 5, 0)
    assert different(pair, copy, code=0) == {}
    assert list(different(pair, copy, "--exact")) == [tensor]


def _edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Write the last shard and the index anew."""
    tensors = load_file(folder / LAST)
    edit(tensors)
    save_file(tensors, folder / LAST, {"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != LAST}
    path.write_text(json.dumps(index | {"weight_map": kept | dict.fromkeys(tensors, LAST)}))


def test_dropped_tensor_is_named(pair: Pair, copy: Path) -> None:
    """A model that lost a tensor is not the merge."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[COPIED]

    _edited(copy, edit)
    found = different(pair, copy)
    assert list(found) == [COPIED]
    answer = ask("verify", pair.base, pair.adapter, copy)
    assert "missing from the merged model" in answer.out
    assert answer.out.splitlines()[-1] == "1 of 21 tensors differ"


def test_tensor_too_many_is_named(pair: Pair, copy: Path) -> None:
    """Neither is one that has more."""
    _edited(copy, lambda tensors: tensors.update(extra=torch.ones(2)))
    assert list(different(pair, copy)) == ["extra"]


def test_other_shape_and_other_dtype_are_named(pair: Pair, copy: Path) -> None:
    """The values may be the same: the tensor is another."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[TOUCHED] = tensors[TOUCHED].reshape(INNER, -1).contiguous()
        tensors[COPIED] = tensors[COPIED].float()

    _edited(copy, edit)
    assert set(different(pair, copy)) == {TOUCHED, COPIED}
    answer = ask("verify", pair.base, pair.adapter, copy)
    assert "shape [83, 48], expected [48, 83]" in answer.out
    assert "dtype F32, expected BF16" in answer.out


def linears(folder: Path) -> set[str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {name for name in index["weight_map"] if "_proj" in name}


def test_another_weight_is_found(pair: Pair, merged: Path, copy: Path) -> None:
    """Every adapted tensor, no other; with and without a receipt."""
    assert set(different(pair, merged, "--weight", "0.9")) == linears(merged)
    (copy / "adaptool.json").unlink()
    assert set(different(pair, copy, "--weight", "0.9")) == linears(merged)
    assert different(pair, copy, code=0) == {}


def test_another_adapter_is_found(pair: Pair, merged: Path, tmp_path: Path) -> None:
    """One factor of one module is another: that module."""
    shutil.copytree(pair.adapter, tmp_path / "other")
    file = tmp_path / "other" / "adapter_model.safetensors"
    tensors = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    key = f"base_model.model.{TOUCHED.removesuffix('weight')}lora_A.weight"
    tensors[key] = drawn(12345, *tensors[key].shape)
    save(file, tensors, "float32")
    assert list(different(Pair(pair.base, tmp_path / "other"), merged)) == [TOUCHED]


def test_another_base_is_found(pair: Pair, merged: Path, tmp_path: Path) -> None:
    """One tensor of the base is another: that tensor, adapted or not."""
    shutil.copytree(pair.base, tmp_path / "other")
    for tensor in (TOUCHED, COPIED):
        flip(tmp_path / "other", tensor, 3, 9)
    found = different(Pair(tmp_path / "other", pair.adapter), merged)
    assert set(found) == {TOUCHED, COPIED}


@pytest.mark.parametrize("flags", [["--max-shard-size", "20KB"], ["--precision", "float32"]])
def test_way_it_was_written_does_not_matter(flags: list[str], pair: Pair, tmp_path: Path) -> None:
    """Other shards hold the same tensors; the receipt says which arithmetic to use."""
    done("merge", pair.base, pair.adapter, tmp_path / "out", *flags)
    assert different(pair, tmp_path / "out", "--exact", code=0) == {}


@pytest.mark.parametrize("name", ["dora-rows", "dora-columns", "experts", "modules-to-save"])
def test_every_kind_of_merge_is_verified_to_the_byte(name: str, tmp_path: Path) -> None:
    """With another number of workers than made it."""
    pair = write(name, tmp_path)
    done("merge", pair.base, pair.adapter, tmp_path / "out", "--threads", "1")
    assert different(pair, tmp_path / "out", "--exact", "--threads", "3", code=0) == {}


def test_single_file_is_verified_without_a_receipt(pair: Pair, tmp_path: Path) -> None:
    """A merged model in one file, wherever it came from."""
    done("merge", pair.base, pair.adapter, tmp_path / "out", "--max-shard-size", "1GB")
    shutil.move(tmp_path / "out" / "model.safetensors", tmp_path / "merged.safetensors")
    assert different(pair, tmp_path / "merged.safetensors", "--exact", code=0) == {}


def test_what_cannot_be_read_is_no_difference(pair: Pair, copy: Path, tmp_path: Path) -> None:
    """A truncated shard is malformed (3), a path with nothing there is usage (2)."""
    content = (copy / LAST).read_bytes()
    (copy / LAST).write_bytes(content[:-1])
    error = refused(3, "verify", pair.base, pair.adapter, copy)
    assert error["code"] == "data-truncated"
    assert str(error["file"]).endswith(LAST)
    assert refused(2, "verify", pair.base, pair.adapter, tmp_path / "no")["code"] == "not-found"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "json-invalid"),
        ("[]", "json-not-object"),
        ('{"command": "resize", "options": {}}', "receipt-invalid"),
        ('{"command": "merge"}', "receipt-invalid"),
        ('{"command": "merge", "options": {"weights": ["one"]}}', "receipt-invalid"),
    ],
)
def test_receipt_that_is_no_merges_is_refused(text: str, code: str, pair: Pair, copy: Path) -> None:
    """Exit 3, naming the receipt: its options would decide what is right."""
    (copy / "adaptool.json").write_text(text)
    error = refused(3, "verify", pair.base, pair.adapter, copy)
    assert error["code"] == code
    assert str(error["file"]).endswith("adaptool.json")


def test_a_fresh_process_says_no_with_exit_1(pair: Pair, copy: Path) -> None:
    """The installed entry point: the table on stdout, nothing on stderr."""
    flip(copy, TOUCHED, 0, 14)
    answer = run("verify", pair.base, pair.adapter, copy)
    assert (answer.code, answer.err) == (1, "")
    assert TOUCHED in answer.out


@pytest.fixture(scope="module")
def peft_merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Path]:
    """A small bfloat16 Llama, an adapter on its linear layers, and what PEFT merges."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    home = tmp_path_factory.mktemp("peft")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LlamaForCausalLM(config).bfloat16().save_pretrained(home / "base", max_shard_size="1MB")
        model = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.bfloat16)
        tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=12, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.02 * torch.randn_like(parameter))
        tuned.save_pretrained(home / "adapter")
        fresh = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.bfloat16)
        loaded: Any = PeftModel.from_pretrained(fresh, home / "adapter")
        loaded.merge_and_unload().save_pretrained(home / "merged")
    return Pair(home / "base", home / "adapter"), home / "merged"


def test_merge_made_by_peft_passes(peft_merged: tuple[Pair, Path]) -> None:
    """One file, no receipt, float32 arithmetic: within one step everywhere."""
    pair, merged = peft_merged
    assert different(pair, merged, code=0) == {}


def test_merge_made_by_peft_fails_where_its_bytes_differ(peft_merged: tuple[Pair, Path]) -> None:
    """--exact names exactly the tensors whose bytes are not those of adaptool's merge."""
    pair, merged = peft_merged
    ours = merged.parent / "ours"
    done("merge", pair.base, pair.adapter, ours)
    expected, found = _arrays(ours), _arrays(merged)
    unlike = {name for name in expected if not np.array_equal(expected[name], found[name])}
    assert unlike  # float32 rounds a few of a million elements to the other side
    exact = different(pair, merged, "--exact")
    assert set(exact) == unlike
    for name, entry in exact.items():
        wrong = int((expected[name] != found[name]).sum())
        assert entry["fraction"] == pytest.approx(wrong / expected[name].size)
        assert entry["max_ulp"] == 1


def _arrays(folder: Path) -> dict[str, Any]:
    return {
        name: tensor.contiguous().view(torch.int16).numpy()
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
