"""Pickles come through one door: refused by default, checked before a child loads them."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptool import AdaptoolError, InputError, MismatchError, inspect, merge
from adaptool.errors import ResourceError
from adaptool.findings import Code
from adaptool.store import pickle_door
from command_line import ADAPTER, BASE


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def pickled(tmp_path: Path) -> tuple[Path, Path]:
    """The fixtures as torch.save writes them: (base, adapter)."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(BASE, base)
    shutil.copytree(ADAPTER, adapter)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    for file in sorted(base.glob("*.safetensors")):
        torch.save(load_file(file), base / _bin(file.name))
        file.unlink()
    index["weight_map"] = {name: _bin(file) for name, file in index["weight_map"].items()}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (base / "model.safetensors.index.json").unlink()
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    return base, adapter


def _bin(name: str) -> str:
    return f"pytorch_{name.removesuffix('.safetensors')}.bin"


def test_pickled_base_and_adapter_merge_to_the_same_bytes(
    tmp_path: Path, pickled: tuple[Path, Path]
) -> None:
    """The door changes the container, not a value."""
    merge(BASE, ADAPTER, tmp_path / "expected")
    merge(*pickled, tmp_path / "out", allow_pickle=True)
    for file in sorted((tmp_path / "expected").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


@pytest.mark.parametrize("which", [0, 1])
def test_pickle_is_refused_by_default(
    tmp_path: Path, pickled: tuple[Path, Path], which: int
) -> None:
    """H1: exit 3, and the flag is named."""
    inputs = [BASE, ADAPTER]
    inputs[which] = pickled[which]
    with pytest.raises(InputError) as caught:
        merge(*inputs, tmp_path / "out")
    assert caught.value.code is Code.PICKLE_ONLY
    assert "--allow-pickle" in str(caught.value.hint)


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.system, ("touch pwned",))


def test_global_that_no_tensor_needs_is_named_and_never_runs(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H2: nothing of torch's own advice to switch the safety off is passed on."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Evil()}, tmp_path / "evil.bin")
    with pytest.raises(InputError) as caught:
        pickle_door.plain_form(tmp_path / "evil.bin", stack)
    assert "posix.system" in caught.value.message
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def _program(body: object) -> bytes:
    return pickle.dumps(body, protocol=2)


def _archive(path: Path, members: list[tuple[str, bytes, int]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, kind in members:
            archive.writestr(name, content, compress_type=kind)
    return path


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
BOMB = bytes(10_000_000)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a/data.pkl", _program({}), STORED), ("a/data/0", BOMB, DEFLATED)], "deflated"),
        ([("a/data.pkl", _program({}), STORED)] * 2, "twice"),
        ([("a/data.pkl", _program({}), STORED), ("b/x.pkl", _program({}), STORED)], "2 pickle"),
        ([("a/data/0", b"", STORED)], "0 pickle"),
        ([("a/data.pkl", b"\x80\x02(", STORED)], "malformed"),
    ],
)
def test_archive_that_torch_does_not_write_is_refused(
    tmp_path: Path, stack: ExitStack, members: list[tuple[str, bytes, int]], says: str
) -> None:
    """H3: before anything is loaded."""
    path = _archive(tmp_path / "model.bin", members)
    with pytest.raises(InputError) as caught:
        pickle_door.plain_form(path, stack)
    assert says in caught.value.message


def test_old_torch_is_not_trusted(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H4: exit 4."""
    monkeypatch.setattr(pickle_door, "version", lambda _: "2.9.1")
    torch.save({"a": torch.ones(1)}, tmp_path / "a.bin")
    with pytest.raises(MismatchError):
        pickle_door.plain_form(tmp_path / "a.bin", stack)


@pytest.mark.parametrize("body", [[torch.ones(1)], {"a": {"b": torch.ones(1)}}, {1: torch.ones(1)}])
def test_anything_but_names_and_tensors_is_refused(
    tmp_path: Path, stack: ExitStack, body: object
) -> None:
    """H5: a nested checkpoint is no state dict."""
    torch.save(body, tmp_path / "a.bin")
    with pytest.raises(InputError) as caught:
        pickle_door.plain_form(tmp_path / "a.bin", stack)
    assert "names and tensors" in caught.value.message


def test_child_that_is_killed_by_its_limits_is_a_resource_error(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H6: exit 7."""
    torch.save({"a": torch.ones(1)}, tmp_path / "a.bin")
    killer = tmp_path / "killer.py"
    killer.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pickle_door, "CHILD", "killer")
    with pytest.raises(ResourceError):
        pickle_door.plain_form(tmp_path / "a.bin", stack)


def test_not_an_archive_is_refused(tmp_path: Path, stack: ExitStack) -> None:
    """A bare pickle, and bytes of any kind."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer, _use_new_zipfile_serialization=False)
    for content in (buffer.getvalue(), b"", os.urandom(100)):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(AdaptoolError) as caught:
            pickle_door.plain_form(tmp_path / "a.bin", stack)
        assert caught.value.exit_code == 3


def test_shared_strided_and_empty_tensors_arrive_as_they_are(
    tmp_path: Path, stack: ExitStack
) -> None:
    """Each tensor is written out, whatever storage it lay in."""
    whole = torch.arange(12.0).reshape(3, 4)
    body = {
        "whole": whole,
        "turned": whole.T,
        "row": whole[1],
        "none": torch.empty(0, 3),
        "half": whole.bfloat16(),
        "scalar": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(body, tmp_path / "a.pt")
    found = load_file(pickle_door.plain_form(tmp_path / "a.pt", stack).path)
    assert set(found) == set(body)
    for name, value in body.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_inspect_reads_a_pickled_adapter(pickled: tuple[Path, Path]) -> None:
    """The same summary as of the safetensors file, sizes aside."""
    expected = inspect(ADAPTER).as_json()
    found = inspect(pickled[1], allow_pickle=True).as_json()
    assert found["ranks"] == expected["ranks"]
    assert found["parameters"] == expected["parameters"]
