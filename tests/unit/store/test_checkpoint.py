"""Opening checkpoints; the table of bad ones is in test_bad_files.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from adaptool.errors import AdaptoolError, InputError, OutputError, UsageError
from adaptool.findings import Code
from adaptool.store.checkpoint import open_checkpoint
from bad_builders import FILE, GOOD_TENSOR, INDEX, SHARDS, checkpoint, good_file, header_bytes


def open_descriptors() -> int:
    """How many descriptors this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


def write(directory: Path, *names: str) -> None:
    """Small files with these names, and the folders they lie in."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")


def shard_of(path: Path, *tensors: str) -> None:
    """A shard with these tensors, 16 bytes each."""
    entries = {
        name: {**GOOD_TENSOR, "data_offsets": [16 * i, 16 * i + 16]}
        for i, name in enumerate(tensors)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header_bytes(entries) + bytes(16 * len(tensors)))


def test_directory_with_an_index(tmp_path: Path) -> None:
    """Shards, tensors, index and config of an ordinary sharded model."""
    with open_checkpoint(checkpoint(tmp_path)) as opened:
        assert opened.name == str(tmp_path)
        assert opened.root == tmp_path
        assert [shard.file for shard in opened.shards] == list(SHARDS)
        assert list(opened.tensors) == ["a", "b"]
        assert opened.tensors["b"].file == str(tmp_path / SHARDS[1])
        assert opened.index_file == INDEX
        assert opened.index == (tmp_path / INDEX).read_bytes()
        assert opened.config == {"model_type": "llama"}
        assert opened.config_bytes == b'{"model_type": "llama"}'
        assert opened.companions == ()
        assert opened.findings == ()


def test_index_in_transformers_form_has_no_findings(tmp_path: Path) -> None:
    """The index that save_pretrained writes, with both totals, is taken without a word."""
    metadata = {"total_parameters": 8, "total_size": 32}
    with open_checkpoint(checkpoint(tmp_path, metadata=metadata)) as opened:
        assert opened.findings == ()


def test_closing_closes_every_shard(tmp_path: Path) -> None:
    """Nothing stays open after the context."""
    checkpoint(tmp_path)
    before = open_descriptors()
    with open_checkpoint(tmp_path):
        assert open_descriptors() == before + 2
    assert open_descriptors() == before


def test_failing_to_open_closes_every_shard(tmp_path: Path) -> None:
    """Nothing stays open where the second shard is malformed, and where the index is wrong."""
    (checkpoint(tmp_path) / SHARDS[1]).write_bytes(b"")
    before = open_descriptors()
    with pytest.raises(AdaptoolError):
        open_checkpoint(tmp_path)
    checkpoint(tmp_path, {"a": SHARDS[0], "c": SHARDS[1]})
    with pytest.raises(AdaptoolError):
        open_checkpoint(tmp_path)
    assert open_descriptors() == before


def test_every_bad_shard_is_reported(tmp_path: Path) -> None:
    """Two malformed shards are two errors of one report."""
    for shard in SHARDS:
        (checkpoint(tmp_path) / shard).write_bytes(b"")
    checkpoint_files = [tmp_path / shard for shard in SHARDS]
    for path in checkpoint_files:
        path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    seen = [caught.value, *caught.value.others]
    assert [error.file for error in seen] == [str(path) for path in checkpoint_files]


def test_single_file_has_neither_config_nor_companions(tmp_path: Path) -> None:
    """A file alone brings nothing along, whatever lies beside it."""
    checkpoint(tmp_path)
    write(tmp_path, "tokenizer.json")
    path = good_file(tmp_path, "weights.any")
    with open_checkpoint(path) as opened:
        assert opened.name == str(path)
        assert opened.root == tmp_path
        assert [shard.file for shard in opened.shards] == ["weights.any"]
        assert (opened.config, opened.index, opened.companions) == (None, None, ())
        assert list(opened.tensors) == ["x"]


@pytest.mark.parametrize(
    "name", [FILE, "diffusion_pytorch_model.safetensors", "flux1-dev.safetensors"]
)
def test_directory_with_one_weight_file(tmp_path: Path, name: str) -> None:
    """The usual names, or the only weight file there is."""
    good_file(tmp_path, name)
    with open_checkpoint(tmp_path) as opened:
        assert [shard.file for shard in opened.shards] == [name]
        assert opened.index is None


def test_model_safetensors_wins_without_an_index(tmp_path: Path) -> None:
    """Other forms beside the usual name are not weights of this model, and stay behind."""
    good_file(tmp_path)
    good_file(tmp_path, "model.fp16.safetensors")
    good_file(tmp_path, "consolidated.safetensors")
    with open_checkpoint(tmp_path) as opened:
        assert [shard.file for shard in opened.shards] == [FILE]
        assert opened.left_out == ("consolidated.safetensors", "model.fp16.safetensors")


def test_other_form_counts_only_where_it_is_alone(tmp_path: Path) -> None:
    """Mistral's own file is the model only until there is another."""
    good_file(tmp_path, "consolidated.safetensors")
    with open_checkpoint(tmp_path) as opened:
        assert [shard.file for shard in opened.shards] == ["consolidated.safetensors"]
    good_file(tmp_path, "weights.safetensors")
    with open_checkpoint(tmp_path) as opened:
        assert [shard.file for shard in opened.shards] == ["weights.safetensors"]
        assert opened.left_out == ("consolidated.safetensors",)


@pytest.mark.parametrize(
    "index", [INDEX, "diffusion_pytorch_model.safetensors.index.json", "x.safetensors.index.json"]
)
def test_index_may_have_any_of_the_usual_names(tmp_path: Path, index: str) -> None:
    """The usual index names, or the only index there is."""
    (checkpoint(tmp_path) / INDEX).rename(tmp_path / index)
    with open_checkpoint(tmp_path) as opened:
        assert opened.index_file == index
        assert len(opened.shards) == 2


@pytest.mark.parametrize("there", [True, False])
def test_path_of_the_index_stands_for_its_directory(tmp_path: Path, there: bool) -> None:
    """An index file as an argument means the model, even where a single file needs none."""
    checkpoint(tmp_path)
    if not there:
        (tmp_path / INDEX).rename(tmp_path / "x.safetensors.index.json")
    with open_checkpoint(tmp_path / INDEX) as opened:
        assert opened.root == tmp_path
        assert len(opened.shards) == 2


def test_one_of_two_indexes_can_be_named(tmp_path: Path) -> None:
    """Where two indexes have unusual names, the argument decides; without it, it is refused."""
    checkpoint(tmp_path)
    shutil.move(tmp_path / INDEX, tmp_path / "a.safetensors.index.json")
    shutil.copy(tmp_path / "a.safetensors.index.json", tmp_path / "b.safetensors.index.json")
    with pytest.raises(InputError, match="2 index files") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.CHECKPOINT_MISSING
    with open_checkpoint(tmp_path / "b.safetensors.index.json") as opened:
        assert opened.index_file == "b.safetensors.index.json"


def test_index_may_list_the_usual_single_file(tmp_path: Path) -> None:
    """An index of one shard called model.safetensors is no contradiction."""
    good_file(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"x": FILE}}))
    with open_checkpoint(tmp_path) as opened:
        assert [shard.file for shard in opened.shards] == [FILE]


def test_shards_may_lie_in_a_folder(tmp_path: Path) -> None:
    """A weight_map may lead into a folder below."""
    shard_of(tmp_path / "weights" / "one.safetensors", "x")
    index = {"metadata": {}, "weight_map": {"x": "weights/one.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as opened:
        assert [shard.file for shard in opened.shards] == ["weights/one.safetensors"]
        assert opened.companions == ()


def test_hub_cache_of_symlinks_opens(tmp_path: Path) -> None:
    """Every file of a snapshot is a link out of its directory."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for path in list(checkpoint(tmp_path / "blobs").iterdir()):
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")
    with open_checkpoint(tmp_path / "snapshot") as opened:
        assert list(opened.tensors) == ["a", "b"]


def test_half_downloaded_snapshot_is_a_local_fault(tmp_path: Path) -> None:
    """A shard whose link leads nowhere is there, and cannot be read."""
    (checkpoint(tmp_path) / SHARDS[1]).unlink()
    (tmp_path / SHARDS[1]).symlink_to("gone")
    with pytest.raises(OutputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.NOT_READABLE
    assert caught.value.file == str(tmp_path / SHARDS[1])


def test_companions_are_what_a_merged_model_needs(tmp_path: Path) -> None:
    """Tokenizer, templates, code and modules go along; docs, receipts, other weights do not."""
    checkpoint(tmp_path)
    kept = (
        ".gitattributes",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "modeling_odd.py",
        "tokenizer.json",
        "tokenizer.model",
    )
    left_out = (
        "README.md",
        "SHA256SUMS",
        "adaptool.json",
        "adaptool.unmerge",
        "checkpoint-500/model.safetensors",
        "checkpoint-500/trainer_state.json",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "gguf/model.GGUF",
        "model.pt",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "other.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "training_args.bin",
    )
    write(tmp_path, *kept, *left_out, ".git/config", ".cache/x", "sub/.hidden/x")
    os.mkfifo(tmp_path / "pipe")
    with open_checkpoint(tmp_path) as opened:
        assert opened.companions == kept
        assert opened.left_out == left_out


def test_companion_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """A file that would be lost in silence makes opening fail."""
    (checkpoint(tmp_path) / "tokenizer.json").symlink_to("gone")
    with pytest.raises(OutputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.file == str(tmp_path / "tokenizer.json")


def test_folder_that_links_to_its_parent_does_not_recurse(tmp_path: Path) -> None:
    """Folders behind links are not entered."""
    (checkpoint(tmp_path) / "loop").symlink_to(".")
    with open_checkpoint(tmp_path) as opened:
        assert opened.companions == ()


def test_config_with_infinity_is_read(tmp_path: Path) -> None:
    """What Python wrote into real configs does not stop a merge."""
    (checkpoint(tmp_path) / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    with open_checkpoint(tmp_path) as opened:
        assert opened.config == {"time_step_limit": [0.0, float("inf")]}


def test_malformed_config_is_refused(tmp_path: Path) -> None:
    """A config that is no JSON is named."""
    (checkpoint(tmp_path) / "config.json").write_text("{")
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.JSON_INVALID
    assert caught.value.file == str(tmp_path / "config.json")


def test_adapter_directory_is_no_model(tmp_path: Path) -> None:
    """An adapter given for a base is told apart."""
    good_file(tmp_path, "adapter_model.safetensors")
    write(tmp_path, "training_args.bin")
    with pytest.raises(UsageError, match="an adapter, not a model"):
        open_checkpoint(tmp_path)


def test_pipeline_names_its_folders(tmp_path: Path) -> None:
    """A diffusion pipeline's root says which of its folders hold weights."""
    for folder in ("unet", "vae"):
        (tmp_path / folder).mkdir()
        good_file(tmp_path / folder, "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is not None
    assert "unet, vae" in caught.value.hint


@pytest.mark.parametrize("count", [1, 2])
def test_shards_without_an_index_are_refused(tmp_path: Path, count: int) -> None:
    """Numbered shards without the index that names them are no whole model."""
    for shard in SHARDS[:count]:
        good_file(tmp_path, shard)
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.CHECKPOINT_MISSING
    assert "no index" in caught.value.message


def test_sharded_pickles_are_recognised(tmp_path: Path) -> None:
    """A model of .bin shards with their index is pickles only."""
    write(tmp_path, "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json")
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.PICKLE_ONLY


def test_stale_file_beside_an_odd_index_is_refused(tmp_path: Path) -> None:
    """model.safetensors is what transformers loads, whatever the index is called."""
    (checkpoint(tmp_path) / INDEX).rename(tmp_path / "x.safetensors.index.json")
    good_file(tmp_path)
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.STALE_WEIGHTS
    assert caught.value.file == str(tmp_path / FILE)


def test_many_mismatches_are_reported_together(tmp_path: Path) -> None:
    """Up to 20 tensors that index and shards disagree on are named at once."""
    extra = {f"t{i}": SHARDS[0] for i in range(30)}
    with pytest.raises(InputError) as caught:
        open_checkpoint(checkpoint(tmp_path, {"a": SHARDS[0], "b": SHARDS[1], **extra}))
    assert len(caught.value.others) == 19
    assert {error.code for error in caught.value.others} == {Code.INDEX_MISMATCH}


def test_shards_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    """Two shards that are one file on some systems."""
    shard_of(tmp_path / "A.safetensors", "a")
    shard_of(tmp_path / "a.safetensors", "b")
    index = {"weight_map": {"a": "A.safetensors", "b": "a.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.PATH_UNSAFE


@pytest.mark.parametrize("total", ["32", 32.5, None, [1]])
def test_odd_total_size_is_a_warning(tmp_path: Path, total: object) -> None:
    """A total of any type is compared, never trusted."""
    with open_checkpoint(checkpoint(tmp_path, metadata={"total_size": total})) as opened:
        assert [finding.code for finding in opened.findings] == [Code.INDEX_TOTAL_SIZE]


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    """A path to nothing is the caller's mistake."""
    with pytest.raises(UsageError) as caught:
        open_checkpoint(tmp_path / "no")
    assert caught.value.code is Code.NOT_FOUND
