"""`adaptool unmerge`: what it restores, how far it is away where it cannot, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from in_process import ask, done, refused
from small_pairs import Pair, write
from unmerging import lost

SIDECAR = "adaptool.unmerge"
FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write("lora", tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def reversible(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reversible") / "out"
    done("merge", pair.base, pair.adapter, out, "--reversible")
    return out


@pytest.fixture(scope="module")
def plain(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    done("merge", pair.base, pair.adapter, out)
    return out


@pytest.fixture
def copy(reversible: Path, tmp_path: Path) -> Path:
    """A reversible merge to spoil."""
    shutil.copytree(reversible, tmp_path / "copy")
    return tmp_path / "copy"


def _refused(pair: Pair, merged: Path, out: Path, code: int, *more: str | Path) -> dict[str, Any]:
    """The error, and nothing written."""
    error = dict(refused(code, "unmerge", merged, pair.adapter, out, *more))
    assert list(out.parent.glob("*out*")) == []
    return error


def test_the_base_comes_back_and_the_answer_says_so(
    pair: Pair, reversible: Path, tmp_path: Path
) -> None:
    """The contract's keys; the output has a receipt and verifies as a base."""
    out = tmp_path / "out"
    body = ask("unmerge", reversible, pair.adapter, out, "--json").json
    assert body["exact"] is True
    assert body["bound"] == 0
    assert body["tensors"] == {"total": 21, "touched": 14}
    assert lost(pair.base, out) == []
    receipt = json.loads((out / "adaptool.json").read_text())
    assert receipt["command"] == "unmerge"
    assert [entry["role"] for entry in receipt["inputs"]] == ["merged", "adapter"]
    assert not (out / SIDECAR).exists()


def test_subtraction_states_a_bound_that_holds(pair: Pair, plain: Path, tmp_path: Path) -> None:
    """Without a sidecar: not exact, and no element is farther away than was said."""
    out = tmp_path / "out"
    body = ask("unmerge", plain, pair.adapter, out, "--json").json
    assert body["exact"] is False
    assert body["bound"] >= 1
    worst = 0
    for file in sorted(pair.base.glob("*.safetensors")):
        there, here = load_file(file), load_file(out / file.name)
        assert there.keys() == here.keys()
        worst = max(worst, *(_steps(there[name], here[name]) for name in there))
    assert 0 < worst <= body["bound"]


def _steps(one: Any, other: Any) -> int:
    """The largest distance in steps of bfloat16."""
    left, right = (each.view(dtype=_int16()).numpy().astype(np.int64) for each in (one, other))
    left, right = (np.where(each < 0, -(each & 0x7FFF), each) for each in (left, right))
    return int(np.abs(left - right).max())


def _int16() -> Any:
    import torch

    return torch.int16


def test_exact_is_refused_where_nothing_was_kept(pair: Pair, plain: Path, tmp_path: Path) -> None:
    """Exit 4, and the flag that would have kept it."""
    error = _refused(pair, plain, tmp_path / "out", 4, "--exact")
    assert error["code"] == "not-reversible"
    assert "--reversible" in str(error["hint"])


def test_float32_arithmetic_has_no_known_bound(pair: Pair, tmp_path: Path) -> None:
    """Its own error depends on the order of sums: null."""
    done("merge", pair.base, pair.adapter, tmp_path / "merged", "--precision", "float32")
    answer = ask("unmerge", tmp_path / "merged", pair.adapter, tmp_path / "out", "--json")
    assert answer.json["bound"] is None


@pytest.mark.parametrize(
    ("name", "word"),
    [("dora-rows", "no sum"), ("modules-to-save", "values of its own")],
)
def test_what_is_no_sum_is_not_subtracted(name: str, word: str, tmp_path: Path) -> None:
    """Exit 4 where nothing was kept: a rescaling tuner, a tensor that was replaced."""
    pair = write(name, tmp_path)
    done("merge", pair.base, pair.adapter, tmp_path / "merged")
    error = _refused(pair, tmp_path / "merged", tmp_path / "out", 4)
    assert error["code"] == "not-reversible"
    assert word in str(error["message"])


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize("place", [-1, -2000, -40_000])
def test_a_flipped_bit_in_the_merged_model_is_refused(
    place: int, pair: Pair, copy: Path, tmp_path: Path
) -> None:
    """Exit 9 with the file and the tensor, touched or copied."""
    _flip(copy / FIRST, place)
    error = _refused(pair, copy, tmp_path / "out", 9)
    assert error["code"] == "integrity"
    assert str(error["file"]).endswith(FIRST)
    assert error["tensor"]


@pytest.mark.parametrize("place", [0, 9, 20, 60, 400, -1, -3000])
def test_a_flipped_bit_in_the_sidecar_is_refused(
    place: int, pair: Pair, copy: Path, tmp_path: Path
) -> None:
    """Exit 9 with its name."""
    _flip(copy / SIDECAR, place)
    error = _refused(pair, copy, tmp_path / "out", 9)
    assert str(error["file"]).endswith(SIDECAR)


@pytest.mark.parametrize("length", [0, 30, 1000, -1])
def test_a_truncated_sidecar_is_refused(
    length: int, pair: Pair, copy: Path, tmp_path: Path
) -> None:
    """Exit 9 with its name."""
    content = (copy / SIDECAR).read_bytes()
    (copy / SIDECAR).write_bytes(content[:length])
    error = _refused(pair, copy, tmp_path / "out", 9)
    assert str(error["file"]).endswith(SIDECAR)


Change = Callable[[Path], None]


def _other_alpha(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))


def _other_weights(adapter: Path) -> None:
    _flip(adapter / "adapter_model.safetensors", -1)


@pytest.fixture(params=["reversible", "plain"])
def either(request: pytest.FixtureRequest) -> Path:
    """A merge with a sidecar, and one without."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("change", [_other_alpha, _other_weights])
def test_another_adapter_is_refused(
    change: Change, pair: Pair, either: Path, tmp_path: Path
) -> None:
    """Another alpha, other weights: exit 4 with the adapter's name, with a sidecar or without."""
    adapter = tmp_path / "adapter"
    shutil.copytree(pair.adapter, adapter)
    change(adapter)
    error = _refused(Pair(pair.base, adapter), either, tmp_path / "out", 4)
    assert error["code"] == "adapter-differs"
    assert str(error["file"]).endswith("adapter")


def test_another_weight_or_count_is_refused(pair: Pair, tmp_path: Path) -> None:
    """--add must name what the receipt lists, at its weight where one is given."""
    other = write("modules-to-save", tmp_path / "two").adapter
    merged, out = tmp_path / "merged", tmp_path / "out"
    done("merge", pair.base, pair.adapter, merged, "--add", f"{other}=0.5", "--reversible")
    assert _refused(pair, merged, out, 4)["code"] == "adapter-differs"
    error = _refused(pair, merged, out, 4, "--add", f"{other}=0.25")
    assert "0.5" in str(error["message"])
    done("unmerge", merged, pair.adapter, out, "--add", f"{other}=0.5", "--exact")
    assert lost(pair.base, out) == []


def test_a_changed_file_of_the_model_is_refused(pair: Pair, copy: Path, tmp_path: Path) -> None:
    """A tokenizer that was edited after the merge is not the base's: exit 9."""
    (copy / "tokenizer.json").write_text('{"version": "2.0"}')
    error = _refused(pair, copy, tmp_path / "out", 9)
    assert str(error["file"]).endswith("tokenizer.json")


def test_a_sidecar_of_another_merge_is_refused(pair: Pair, copy: Path, tmp_path: Path) -> None:
    """Exit 9 where it lies beside weights that it does not speak of."""
    done("merge", pair.base, pair.adapter, tmp_path / "half", "--weight", "0.5", "--reversible")
    shutil.copy(tmp_path / "half" / SIDECAR, copy / SIDECAR)
    error = _refused(pair, copy, tmp_path / "out", 9)
    assert str(error["file"]).endswith(SIDECAR)


def test_a_model_without_a_receipt_is_refused(pair: Pair, tmp_path: Path) -> None:
    """Weights and options are not guessed."""
    error = _refused(pair, pair.base, tmp_path / "out", 3)
    assert error["code"] == "receipt-invalid"


def test_weights_that_a_checksum_knows_are_checked_before_subtracting(
    pair: Pair, tmp_path: Path
) -> None:
    """Exit 9 with the file."""
    merged = tmp_path / "merged"
    done("merge", pair.base, pair.adapter, merged, "--checksum")
    _flip(merged / FIRST, -1)
    error = _refused(pair, merged, tmp_path / "out", 9)
    assert str(error["file"]).endswith(FIRST)


@pytest.mark.parametrize("outputs", [7, "all", [3, {"sha256": "0"}], {"name": FIRST}])
def test_receipt_that_lists_no_files_is_no_bug_of_ours(
    outputs: object, pair: Pair, tmp_path: Path
) -> None:
    """What is no entry is passed over, as nothing is known of the files then."""
    merged, receipt = tmp_path / "merged", tmp_path / "merged" / "adaptool.json"
    done("merge", pair.base, pair.adapter, merged)
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "outputs": outputs}))
    done("unmerge", merged, pair.adapter, tmp_path / "out")


def test_what_is_stored_whole_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """The dry run names the size of tensors that cannot be predicted."""
    pair = write("modules-to-save", tmp_path)
    out = tmp_path / "out"
    answer = ask("merge", pair.base, pair.adapter, out, "--reversible", "--dry-run", "--json")
    said = {each["code"]: each["message"] for each in answer.json["findings"]}
    assert "stored whole" in said["stored-whole"]
    stored = answer.json["plan"]["decisions"]["stored_whole"]
    done("merge", pair.base, pair.adapter, out, "--reversible")
    assert 0 < stored["bytes"] < (out / SIDECAR).stat().st_size


def test_the_same_merge_writes_the_same_sidecar(
    pair: Pair, reversible: Path, tmp_path: Path
) -> None:
    """Whatever the thread count."""
    done("merge", pair.base, pair.adapter, tmp_path / "o", "--reversible", "--threads", "3")
    assert (tmp_path / "o" / SIDECAR).read_bytes() == (reversible / SIDECAR).read_bytes()


def test_the_merged_model_is_what_a_plain_merge_writes(reversible: Path, plain: Path) -> None:
    """--reversible adds a file and changes none."""
    for file in sorted(plain.iterdir()):
        if file.name != "adaptool.json":
            assert (reversible / file.name).read_bytes() == file.read_bytes()


def test_a_config_is_known_by_its_file_or_as_older_receipts_have_it(
    pair: Pair, plain: Path, tmp_path: Path
) -> None:
    """Those have the digest of the value, written again with sorted keys."""
    merged = tmp_path / "merged"
    shutil.copytree(plain, merged)
    content = json.loads((merged / "adaptool.json").read_text())
    (entry,) = (each for each in content["inputs"] if each["role"] == "adapter")
    config = (pair.adapter / "adapter_config.json").read_bytes()
    assert entry["config_sha256"] == sha256(config).hexdigest()
    value = json.dumps(json.loads(config), sort_keys=True, ensure_ascii=False).encode()
    for digest, code in ((sha256(value).hexdigest(), 0), ("0" * 64, 4)):
        entry["config_sha256"] = digest
        (merged / "adaptool.json").write_text(json.dumps(content))
        assert ask("unmerge", merged, pair.adapter, tmp_path / f"base-{code}").code == code
