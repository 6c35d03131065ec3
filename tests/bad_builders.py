"""What bad files are built from: the row of a table, and writers of headers and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.findings import Code

GOOD_TENSOR: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@dataclass(frozen=True, slots=True)
class BadFile:
    """One row: how to build it, and what comes of it.

    `code` is the error's, or for an accepted row the finding's (None: no finding). `tensor`,
    `field` and `says` (a part of the message) are asserted where given; `file` is the part of the
    error's file name asserted. `unprivileged`: root is not stopped by it.
    """

    row: str
    build: Callable[[Path], Path]
    exit: int
    code: Code | None
    tensor: str | None = None
    field: str | None = None
    says: str = ""
    file: str = FILE
    unprivileged: bool = False


def header_bytes(header: str | bytes | Mapping[str, Any]) -> bytes:
    """A header as it lies on disk: its length, then the text, the bytes or the object as JSON."""
    if isinstance(header, Mapping):
        header = json.dumps(header, separators=(",", ":"))
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw


def file_of(content: bytes) -> Callable[[Path], Path]:
    """A builder of `model.safetensors` with this content."""

    def build(directory: Path) -> Path:
        path = directory / FILE
        path.write_bytes(content)
        return path

    return build


def with_header(
    header: str | bytes | Mapping[str, Any], data: bytes = bytes(16)
) -> Callable[[Path], Path]:
    """A builder of a file with this header and these data."""
    return file_of(header_bytes(header) + data)


def with_entry(data: bytes = bytes(16), /, **changed: Any) -> Callable[[Path], Path]:
    """A builder of a file whose tensor `x` has these fields changed; None leaves one out."""
    entry = {key: value for key, value in {**GOOD_TENSOR, **changed}.items() if value is not ...}
    return with_header({"x": entry}, data)


def with_entry_text(text: str) -> Callable[[Path], Path]:
    """A builder of a file whose tensor `x` has this text for an entry."""
    return with_header('{"x":' + text + "}")


def good_file(directory: Path, name: str = FILE) -> Path:
    """A sound safetensors file with one tensor, `x`."""
    path = directory / name
    path.write_bytes(header_bytes({"x": GOOD_TENSOR}) + bytes(16))
    return path


def checkpoint(
    directory: Path, weight_map: Mapping[str, Any] | None = None, **changed: Any
) -> Path:
    """Two shards, holding tensors `a` and `b`, with an index; `changed` are its other keys."""
    for shard, tensor in zip(SHARDS, ("a", "b"), strict=True):
        (directory / shard).write_bytes(header_bytes({tensor: GOOD_TENSOR}) + bytes(16))
    if weight_map is None:
        weight_map = {"a": SHARDS[0], "b": SHARDS[1]}
    index = {"metadata": {"total_size": 32}, "weight_map": weight_map, **changed}
    kept = {key: value for key, value in index.items() if value is not ...}
    (directory / INDEX).write_text(json.dumps(kept))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def zip_start(name: bytes) -> bytes:
    """The start of a zip archive whose first member has this name."""
    return b"PK\x03\x04" + bytes(4) + b"\x08\x08" + bytes(16) + bytes([len(name), 0, 0, 0]) + name
