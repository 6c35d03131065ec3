"""Which files of a repository are pulled."""

from __future__ import annotations

import pytest

from adaptool.errors import InputError, RemoteError, UsageError
from adaptool.findings import Code
from adaptool.remote.hub import RemoteFile
from adaptool.remote.selection import selected
from adaptool.remote.uri import HubUri


def _names(*paths: str, uri: str = "hf://me/it", allow_pickle: bool = False) -> list[str]:
    files = [RemoteFile(path, 10, "0" * 40, None) for path in paths]
    found = selected(HubUri.parse(uri), files, allow_pickle=allow_pickle)
    return [each.name for each in found]


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def test_adapter_needs_config_weights_and_tokenizer() -> None:
    """Training leftovers, pickles and checkpoints stay where they are."""
    more = ("tokenizer.json", "README.md", "training_args.bin", "trainer_state.json", "runs/x")
    inner = ("checkpoint-5/adapter_model.safetensors", "adapter_model.bin", "optimizer.pt")
    assert _names(*ADAPTER, *more, *inner) == ["README.md", *ADAPTER, "tokenizer.json"]


def test_model_needs_its_index_and_shards() -> None:
    """Another form of the weights is another model's worth of bytes."""
    others = ("consolidated.safetensors", "pytorch_model-00001-of-00002.bin", "onnx/model.onnx")
    texts = ("config.json", "tokenizer.model", "generation_config.json")
    index = ("pytorch_model.bin.index.json", INDEX)
    found = _names(*SHARDS, *others, *texts, *index, "LICENSE")
    assert found == sorted([*SHARDS, INDEX, *texts, "LICENSE"])


def test_single_weight_file_wins_over_variants() -> None:
    """model.safetensors is what loaders read."""
    found = _names("config.json", "model.safetensors", "model.fp16.safetensors")
    assert found == ["config.json", "model.safetensors"]


def test_folder_is_pulled_without_its_path() -> None:
    """A named adapter in a folder of its own."""
    paths = [f"style/{name}" for name in ADAPTER]
    assert _names(*paths, "README.md", uri="hf://me/it/style") == [*ADAPTER]


def test_one_file_can_be_named() -> None:
    """An adapter that is a single file."""
    paths = ("a/style.safetensors", "a/other.safetensors")
    assert _names(*paths, uri="hf://me/it/a/style.safetensors") == ["style.safetensors"]


def test_folder_that_is_not_there_is_a_remote_error() -> None:
    """Exit 6."""
    with pytest.raises(RemoteError) as caught:
        _names(*ADAPTER, uri="hf://me/it/none")
    assert caught.value.code is Code.NOT_FOUND


def test_pickles_need_the_flag() -> None:
    """Exit 3, unless they are asked for; safetensors are taken where there are both."""
    pickled = ("adapter_config.json", "adapter_model.bin")
    with pytest.raises(InputError) as caught:
        _names(*pickled)
    assert caught.value.code is Code.PICKLE_ONLY
    assert _names(*pickled, allow_pickle=True) == [*pickled]
    assert _names(*ADAPTER, "adapter_model.bin", allow_pickle=True) == [*ADAPTER]


@pytest.mark.parametrize(
    "name",
    [
        "../adapter_model.safetensors",
        "/etc/passwd",
        "a\\b.json",
        "C:evil.json",
        "a\0b.json",
        "\\\\host\\share\\x.json",
        ".git/config",
        "a/../../b.json",
        "x\x1b[2J.json",
    ],
)
def test_hostile_name_is_refused(name: str) -> None:
    """Exit 3, wherever in the tree it stands, wanted or not."""
    with pytest.raises(InputError) as caught:
        _names(*ADAPTER, name)
    assert caught.value.code is Code.PATH_UNSAFE


def test_names_that_differ_in_case_only_are_refused() -> None:
    """One would overwrite the other on some file systems."""
    with pytest.raises(InputError):
        _names("model.safetensors", "config.json", "Config.json")


def test_pipeline_and_empty_repository_name_the_folders() -> None:
    """Exit 2: one of its models must be named."""
    with pytest.raises(UsageError) as caught:
        _names("model_index.json", "unet/diffusion_pytorch_model.safetensors")
    assert "hf://me/it/unet" in str(caught.value.hint)
    with pytest.raises(UsageError) as caught:
        _names("README.md", "a/adapter_model.safetensors", "b/adapter_model.safetensors")
    assert "hf://me/it/a" in str(caught.value.hint)
