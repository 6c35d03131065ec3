"""Bad checkpoint directories: rows E of the table of bad inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptool.findings import Code
from bad_builders import (
    GOOD_TENSOR,
    INDEX,
    SHARDS,
    BadFile,
    checkpoint,
    good_file,
    header_bytes,
    zip_start,
)


def _with_map(**changed: Any) -> Callable[[Path], Path]:
    weight_map = {"a": SHARDS[0], "b": SHARDS[1], **changed}
    kept = {key: value for key, value in weight_map.items() if value is not ...}
    return lambda directory: checkpoint(directory, kept)


def _with_index(**changed: Any) -> Callable[[Path], Path]:
    return lambda directory: checkpoint(directory, **changed)


def _shard_missing(directory: Path) -> Path:
    (checkpoint(directory) / SHARDS[1]).unlink()
    return directory


def _index_text(text: str) -> Callable[[Path], Path]:
    def build(directory: Path) -> Path:
        (checkpoint(directory) / INDEX).write_text(text)
        return directory

    return build


def _outside(directory: Path) -> Path:
    """An index that leads to a real, well-formed file outside the model's directory."""
    (directory / "model").mkdir()
    good_file(directory, "b.safetensors")
    return checkpoint(directory / "model", {"a": SHARDS[0], "b": "../b.safetensors"})


def _held_twice(directory: Path) -> Path:
    both = {"a": {**GOOD_TENSOR, "data_offsets": [16, 32]}, "b": GOOD_TENSOR}
    (checkpoint(directory) / SHARDS[1]).write_bytes(header_bytes(both) + bytes(32))
    return directory


def _stale(directory: Path) -> Path:
    good_file(checkpoint(directory))
    return directory


def _pickle_only(directory: Path) -> Path:
    (directory / "pytorch_model.bin").write_bytes(zip_start(b"archive/data.pkl"))
    return directory


def _custom_code(directory: Path) -> Path:
    config = {"model_type": "odd", "auto_map": {"AutoModel": "modeling_odd.OddModel"}}
    (checkpoint(directory) / "config.json").write_text(json.dumps(config))
    (directory / "modeling_odd.py").write_text("raise SystemExit\n")
    return directory


def _path_row(row: str, shard: str) -> BadFile:
    return BadFile(row, _with_map(b=shard), 3, Code.PATH_UNSAFE, field="weight_map", file=INDEX)


def _index_row(row: str, build: Callable[[Path], Path], field: str = "weight_map") -> BadFile:
    return BadFile(row, build, 3, Code.INDEX_INVALID, field=field, file=INDEX)


CHECKPOINTS: tuple[BadFile, ...] = (
    BadFile("E1", _shard_missing, 3, Code.SHARD_MISSING, file=SHARDS[1], says=SHARDS[1]),
    BadFile("E2-not-json", _index_text("{"), 3, Code.JSON_INVALID, file=INDEX, says="line 1"),
    BadFile("E2-array", _index_text("[]"), 3, Code.JSON_NOT_OBJECT, file=INDEX),
    BadFile(
        "E2-twice",
        _index_text('{"weight_map":{"a":"a","a":"b"}}'),
        3,
        Code.DUPLICATE_KEY,
        field="weight_map.a",
        file=INDEX,
    ),
    _index_row("E2-no-weight-map", _with_index(weight_map=...)),
    _index_row("E2-empty", _with_index(weight_map={})),
    _index_row("E2-list", _with_index(weight_map=["a"])),
    BadFile(
        "E2-number", _with_map(b=2), 3, Code.INDEX_INVALID, "b", field="weight_map", file=INDEX
    ),
    BadFile("E3", _with_index(metadata=...), 0, Code.INDEX_INVALID, field="metadata", file=INDEX),
    BadFile("E4-parent", _outside, 3, Code.PATH_UNSAFE, field="weight_map", file=INDEX),
    _path_row("E4-absolute", "/x.safetensors"),
    _path_row("E4-drive", "C:x.safetensors"),
    _path_row("E4-backslash", "..\\x.safetensors"),
    _path_row("E4-nul", "x\0.safetensors"),
    _index_row("E5", _with_map(b="pytorch_model.bin")),
    BadFile("E6-not-in-shard", _with_map(c=SHARDS[1]), 3, Code.INDEX_MISMATCH, "c", file=INDEX),
    BadFile(
        "E6-not-in-index",
        _with_map(a=..., c=SHARDS[0]),
        3,
        Code.INDEX_MISMATCH,
        "c",
        file=INDEX,
    ),
    BadFile("E7", _held_twice, 3, Code.TENSOR_IN_TWO_SHARDS, "a", file=SHARDS[1]),
    BadFile("E8", _stale, 3, Code.STALE_WEIGHTS),
    BadFile("E9", _pickle_only, 3, Code.PICKLE_ONLY, file="", says="pytorch_model.bin"),
    BadFile(
        "E10",
        _index_text(" " * (64 * 1024 * 1024 + 1)),
        7,
        Code.JSON_TOO_LARGE,
        file=INDEX,
        says="67108865 bytes",
    ),
    BadFile(
        "E11",
        _with_index(metadata={"total_size": 31}),
        0,
        Code.INDEX_TOTAL_SIZE,
        field="metadata.total_size",
        file=INDEX,
        says="32 bytes",
    ),
    BadFile("E12", _custom_code, 0, Code.CUSTOM_CODE, field="auto_map", file="config.json"),
)
