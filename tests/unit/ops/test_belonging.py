"""Files and the artifacts that they are part of."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.ops.belonging import whole, wholes


def _made(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "config.json",
        "model.safetensors.index.json",
    ],
)
def test_part_stands_for_its_folder(tmp_path: Path, name: str) -> None:
    """These names mean nothing alone, whether or not the rest lies there."""
    _made(tmp_path, f"a/{name}")
    assert whole(tmp_path / "a" / name) == tmp_path / "a"


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("adapters.safetensors", "adapter_config.json"),
        ("model.safetensors", "config.json"),
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    ],
)
def test_weights_stand_for_their_folder_where_it_says_so(
    tmp_path: Path, name: str, beside: str
) -> None:
    """With a config or an index beside them they are a part, without one all there is."""
    _made(tmp_path, f"alone/{name}", f"part/{name}", f"part/{beside}")
    assert whole(tmp_path / "alone" / name) == tmp_path / "alone" / name
    assert whole(tmp_path / "part" / name) == tmp_path / "part"


def test_other_files_and_folders_stand_for_themselves(tmp_path: Path) -> None:
    """A single-file adapter, a GGUF, a directory, what is not there."""
    _made(tmp_path, "style.safetensors", "lora.gguf", "folder/adapter_config.json")
    for name in ("style.safetensors", "lora.gguf", "folder", "nothing"):
        assert whole(tmp_path / name) == tmp_path / name


def test_each_artifact_is_named_once(tmp_path: Path) -> None:
    """In the order of its first file; a file in the current folder is of that folder."""
    _made(tmp_path, "b/adapter_config.json", "b/adapter_model.safetensors", "a.safetensors")
    paths = [tmp_path / name for name in ("b/adapter_model.safetensors", "a.safetensors", "b")]
    assert wholes(paths) == (tmp_path / "b", tmp_path / "a.safetensors")
    assert wholes([Path("adapter_config.json")]) == (Path(),)
