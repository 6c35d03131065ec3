"""Builders of bad files, one for each row of the table of bad inputs, for every level of tests.

A row's builder writes below the directory it is given and returns the path to open. Rows A and B
are safetensors files (or stand where one is expected), rows E are checkpoint directories. `exit`
is what a command that reads the path exits with; 0 means that it is accepted.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptool.findings import Code
from bad_builders import (
    FILE,
    GOOD_TENSOR,
    BadFile,
    file_of,
    good_file,
    with_entry,
    with_entry_text,
    with_header,
    zip_start,
)
from bad_checkpoints import CHECKPOINTS

__all__ = ["CHECKPOINTS", "CONTAINER", "KINDS", "BadFile"]


def _pair(first: Sequence[int], second: Sequence[int], data: bytes) -> Callable[[Path], Path]:
    """A builder of two U8 tensors at these offsets."""
    return with_header(
        {
            "first": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
            "second": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
        },
        data,
    )


def _million(directory: Path) -> Path:
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return with_header("{" + ",".join(entry % i for i in range(1_000_001)) + "}", b"")(directory)


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
_GOOD = {"x": GOOD_TENSOR}
_GOOD_TEXT = json.dumps(_GOOD)
_ENTRY_TEXT = json.dumps(GOOD_TENSOR)
_TWICE = '{"x":' + _ENTRY_TEXT + ',"x":' + _ENTRY_TEXT + "}"
_HUGE = "9" * 5000


def _shape_text(shape: str) -> Callable[[Path], Path]:
    return with_entry_text('{"dtype":"F32","shape":' + shape + ',"data_offsets":[0,16]}')


def _metadata(value: Any) -> Callable[[Path], Path]:
    return with_header({"__metadata__": value, **_GOOD})


def _shape(row: str, **changed: Any) -> BadFile:
    return BadFile(row, with_entry(**changed), 3, Code.SHAPE_INVALID, "x", "shape")


def _number(row: str, text: str, code: Code) -> BadFile:
    tensor = "x" if code is Code.SHAPE_INVALID else None
    return BadFile(row, _shape_text(f"[{text},2]"), 3, code, tensor)


def _offsets(row: str, offsets: Any) -> BadFile:
    build = with_entry(data_offsets=offsets)
    return BadFile(row, build, 3, Code.OFFSETS_INVALID, "x", "data_offsets")


def _accepted_name(row: str, name: str) -> BadFile:
    return BadFile(row, with_header({name: GOOD_TENSOR}), 0, None)


CONTAINER: tuple[BadFile, ...] = (
    BadFile("A1-empty", file_of(b""), 3, Code.HEADER_TOO_SHORT, says="0 bytes"),
    BadFile("A1-short", file_of(b"\x08\x00\x00"), 3, Code.HEADER_TOO_SHORT, says="3 bytes"),
    BadFile(
        "A2",
        file_of((1000).to_bytes(8, "little") + b"{" + bytes(83)),
        3,
        Code.HEADER_TRUNCATED,
        says="header says 1000 bytes, file has 92",
    ),
    BadFile(
        "A3-over-limit",
        file_of((100_000_001).to_bytes(8, "little") + b"{" + bytes(83)),
        3,
        Code.HEADER_TOO_LARGE,
        says="100000001",
    ),
    BadFile("A3-largest", file_of(b"\xff" * 8 + b"{}"), 3, Code.HEADER_TOO_LARGE),
    BadFile("A4", file_of(LFS_POINTER), 3, Code.LFS_POINTER, says="12345 bytes expected"),
    BadFile("A5-html", file_of(b"<!DOCTYPE html><html></html>"), 3, Code.HTML_PAGE),
    BadFile("A5-xml", file_of(b"\n <?xml version='1.0'?><Error/>"), 3, Code.HTML_PAGE),
    BadFile("A5-json", file_of(b'{"error":"not found"}'), 3, Code.FOREIGN_FORMAT, says="JSON"),
    BadFile("A6-zip", file_of(zip_start(b"archive/data.pkl")), 3, Code.PICKLE_FILE),
    BadFile("A6-pickle", file_of(b"\x80\x02}q\x00."), 3, Code.PICKLE_FILE),
    BadFile(
        "A6-legacy", file_of(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), 3, Code.PICKLE_FILE
    ),
    BadFile("A7-gguf", file_of(b"GGUF\x03" + bytes(40)), 3, Code.FOREIGN_FORMAT, says="GGUF"),
    BadFile("A7-npz", file_of(zip_start(b"weight.npy")), 3, Code.FOREIGN_FORMAT, says="NumPy"),
    BadFile(
        "A7-onnx", file_of(b"\x08\x07\x12\x07pytorch\x1a\x05"), 3, Code.FOREIGN_FORMAT, says="ONNX"
    ),
    BadFile("A8", with_header(b'{"\xff":1}'), 3, Code.HEADER_NOT_UTF8, says="offset 10"),
    BadFile(
        "A9",
        with_header("\ufeff" + _GOOD_TEXT),
        3,
        Code.HEADER_NOT_JSON,
        says="byte-order mark",
    ),
    BadFile("A10-invalid", with_header('{"x":'), 3, Code.HEADER_NOT_JSON, says="column"),
    BadFile("A10-comma", with_header(_GOOD_TEXT[:-1] + ",}"), 3, Code.HEADER_NOT_JSON),
    BadFile("A10-comment", with_header("/**/" + _GOOD_TEXT), 3, Code.HEADER_NOT_JSON),
    BadFile("A10-nan", with_header('{"x":NaN}'), 3, Code.HEADER_NOT_JSON, says="NaN"),
    BadFile("A11-array", with_header("[]"), 3, Code.HEADER_NOT_OBJECT, says="an array"),
    BadFile("A11-null", with_header("null"), 3, Code.HEADER_NOT_OBJECT, says="null"),
    BadFile("A11-string", with_header('"x"'), 3, Code.HEADER_NOT_OBJECT, says="a string"),
    BadFile("A12-nul", with_header(_GOOD_TEXT + "\0\0"), 3, Code.HEADER_GARBAGE, says="2 bytes"),
    BadFile("A12-text", with_header(_GOOD_TEXT + "{}é"), 3, Code.HEADER_GARBAGE, says="4 bytes"),
    BadFile("A13", with_header("  \n" + _GOOD_TEXT), 0, Code.HEADER_PADDED_START),
    BadFile("A14-million", with_header("[" * 1_000_000), 3, Code.HEADER_TOO_DEEP),
    BadFile(
        "A14-extra-field",
        with_entry_text(_ENTRY_TEXT[:-1] + ',"more":' + "[" * 129 + "]" * 129 + "}"),
        3,
        Code.HEADER_TOO_DEEP,
        "x",
        "more",
    ),
    BadFile("A15", with_header(_TWICE), 3, Code.DUPLICATE_KEY, "x"),
    BadFile(
        "A15-field",
        with_entry_text(_ENTRY_TEXT[:-1] + ',"shape":[4]}'),
        3,
        Code.DUPLICATE_KEY,
        "x",
        "shape",
    ),
    BadFile(
        "A16",
        with_header('{"__metadata__":{"a":"1","a":"2"},' + _GOOD_TEXT[1:]),
        3,
        Code.DUPLICATE_KEY,
        field="__metadata__.a",
    ),
    BadFile(
        "A16-whole",
        with_header('{"__metadata__":{},"__metadata__":{},' + _GOOD_TEXT[1:]),
        3,
        Code.DUPLICATE_KEY,
        field="__metadata__",
    ),
    *(
        BadFile(
            f"A17-{name}",
            _metadata({"a": value}),
            3,
            Code.METADATA_NOT_STRING,
            field="__metadata__.a",
        )
        for name, value in (("int", 1), ("null", None), ("list", []), ("object", {}))
    ),
    BadFile("A17-array", _metadata([]), 3, Code.METADATA_NOT_STRING, field="__metadata__"),
    BadFile("A18", _metadata(None), 0, None),
    BadFile("A19-unknown", with_entry(dtype="F33"), 3, Code.DTYPE_UNKNOWN, "x", "dtype", "BF16"),
    BadFile("A19-lower", with_entry(dtype="f32"), 3, Code.DTYPE_UNKNOWN, "x", "dtype", "'f32'"),
    BadFile("A19-number", with_entry(dtype=32), 3, Code.DTYPE_UNKNOWN, "x", "dtype"),
    BadFile("A19-list", with_entry(dtype=["F32"]), 3, Code.DTYPE_UNKNOWN, "x", "dtype"),
    *(
        BadFile(
            f"A20-{field}",
            with_entry(**{field: ...}),
            3,
            Code.TENSOR_ENTRY_MALFORMED,
            "x",
            field,
        )
        for field in GOOD_TENSOR
    ),
    BadFile("A21", with_entry(strides=[2, 1]), 0, Code.TENSOR_EXTRA_FIELD, "x", "strides"),
    BadFile("A22", with_entry_text('["F32",[2,2],[0,16]]'), 3, Code.TENSOR_ENTRY_MALFORMED, "x"),
    BadFile("A22-null", with_entry_text("null"), 3, Code.TENSOR_ENTRY_MALFORMED, "x"),
    _shape("A23-negative", shape=[-2, -2]),
    _shape("A23-float", shape=[2.0, 2]),
    _shape("A23-string", shape=["2", 2]),
    _shape("A23-bool", shape=[True, 4]),
    _shape("A23-null", shape=[None]),
    _shape("A23-no-array", shape=4),
    _number("A24-minus-zero", "-0", Code.SHAPE_INVALID),
    _number("A24-exponent", "2e0", Code.SHAPE_INVALID),
    _number("A24-leading-zero", "02", Code.HEADER_NOT_JSON),
    _number("A24-over-u64", "18446744073709551618", Code.SHAPE_INVALID),
    _number("A24-5000-digits", _HUGE, Code.HEADER_NOT_JSON),
    _shape("A25", shape=[2**62, 2**62]),
    _shape("A26", shape=[0, 2**63, 4]),
    _shape("A26-hidden-overflow", shape=[0, 2**62, 2**62], data_offsets=[0, 0]),
    _shape("A27", shape=[1] * 33),
    _offsets("A28-negative", [-16, 0]),
    _offsets("A28-one", [16]),
    _offsets("A28-three", [0, 8, 16]),
    _offsets("A28-reversed", [16, 0]),
    _offsets("A28-float", [0, 16.0]),
    _offsets("A28-bool", [False, 16]),
    _offsets("A28-object", {"0": 16}),
    BadFile(
        "A29",
        _pair([0, 8], [4, 12], bytes(12)),
        3,
        Code.OFFSETS_OVERLAP,
        "second",
        "data_offsets",
        "bytes 4..12 overlap first, which ends at 8",
    ),
    BadFile("A30-start", _pair([4, 8], [8, 12], bytes(12)), 3, Code.OFFSETS_HOLE, "first"),
    BadFile(
        "A30-middle",
        _pair([0, 4], [8, 12], bytes(12)),
        3,
        Code.OFFSETS_HOLE,
        "second",
        "data_offsets",
        "bytes 4..8",
    ),
    BadFile(
        "A31",
        with_entry(shape=[2, 3]),
        3,
        Code.TENSOR_SIZE_MISMATCH,
        "x",
        "data_offsets",
        "needs 24 bytes, has 16",
    ),
    BadFile(
        "A32", with_header(_GOOD, bytes(21)), 3, Code.DATA_TRAILING, says="5 bytes after the last"
    ),
    BadFile(
        "A33", with_header(_GOOD, bytes(14)), 3, Code.DATA_TRUNCATED, "x", says="2 bytes missing"
    ),
    BadFile(
        "A34-f4",
        with_entry(dtype="F4", shape=[3], data_offsets=[0, 2]),
        3,
        Code.TENSOR_SIZE_MISMATCH,
        "x",
        says="12 bits",
    ),
    BadFile(
        "A34-f6",
        with_entry(dtype="F6_E2M3", shape=[3], data_offsets=[0, 2]),
        3,
        Code.TENSOR_SIZE_MISMATCH,
        "x",
        says="18 bits",
    ),
    BadFile("A35", with_entry(bytes(3), dtype="F6_E2M3", shape=[4], data_offsets=[0, 3]), 0, None),
    BadFile("A36", _million, 7, Code.LIMIT_EXCEEDED, says="1000001 tensors"),
    BadFile("A37", _metadata({"a": "x" * 50_000_000}), 0, None),
    _accepted_name("A38-ansi", "\x1b[31mred\x1b[0m"),
    _accepted_name("A38-markup", "[bold]x[/b]"),
    _accepted_name("A38-newline", "x\n::error::y"),
    _accepted_name("A38-bidi", "\u202ex"),
    BadFile(
        "A38-named-in-an-error",
        with_header({"\x1b[31m": {**GOOD_TENSOR, "shape": [3]}}),
        3,
        Code.TENSOR_SIZE_MISMATCH,
    ),
    BadFile("A39", with_header('{"\\ud800":' + _ENTRY_TEXT + "}"), 3, Code.HEADER_NOT_JSON),
    BadFile(
        "A39-metadata",
        with_header('{"__metadata__":{"a":"\\uDFFF"},' + _GOOD_TEXT[1:]),
        3,
        Code.HEADER_NOT_JSON,
    ),
    _accepted_name("A40-parent", "../../x"),
    _accepted_name("A40-empty", ""),
    _accepted_name("A40-nul", "a\0b"),
    BadFile(
        "A40-long", with_header({"é" * 2049: GOOD_TENSOR}), 3, Code.TENSOR_NAME_UNSAFE, says="4098"
    ),
    BadFile("A41", with_header({}, b""), 0, Code.NO_TENSORS),
    BadFile("A42", with_header('{},"__metadata__":{}}   ', b""), 3, Code.HEADER_GARBAGE),
    BadFile(
        "A43",
        with_header(
            {
                "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
            },
            bytes(7),
        ),
        0,
        None,
    ),
)


def _near_missing(directory: Path) -> Path:
    good_file(directory)
    return directory / "modle.safetensors"


def _fifo(directory: Path) -> Path:
    os.mkfifo(directory / FILE)
    return directory / FILE


def _socket(directory: Path) -> Path:
    os.mknod(directory / FILE, stat.S_IFSOCK | 0o600)
    return directory / FILE


def _device(directory: Path) -> Path:
    return _link(directory, "/dev/zero")


def _link(directory: Path, target: str) -> Path:
    path = directory / FILE
    path.symlink_to(target)
    return path


def _forbidden(directory: Path) -> Path:
    path = good_file(directory)
    path.chmod(0)
    return path


def _cache_link(directory: Path) -> Path:
    """The Hugging Face cache: a link out of the snapshot to a file without a suffix."""
    (directory / "blobs").mkdir()
    (directory / "snapshots").mkdir()
    good_file(directory / "blobs", "0123abcd")
    return _link(directory / "snapshots", "../blobs/0123abcd")


def _odd_path(directory: Path) -> Path:
    return good_file(directory, os.fsdecode(b"we\xff\nights.safetensors"))


def _odd_path_truncated(directory: Path) -> Path:
    path = _odd_path(directory)
    path.write_bytes(path.read_bytes()[:-1])
    return path


KINDS: tuple[BadFile, ...] = (
    BadFile("B1", _near_missing, 2, Code.NOT_FOUND, file="modle.safetensors"),
    BadFile("B2", lambda directory: directory, 2, None, file=""),
    BadFile("B3-fifo", _fifo, 3, Code.NOT_REGULAR_FILE, says="a pipe"),
    BadFile("B3-socket", _socket, 3, Code.NOT_REGULAR_FILE, says="a socket"),
    BadFile("B3-device", _device, 3, Code.NOT_REGULAR_FILE, says="a character device"),
    BadFile("B4", _forbidden, 5, Code.NOT_READABLE, unprivileged=True),
    BadFile("B5-dangling", lambda path: _link(path, "gone"), 5, Code.NOT_READABLE, says="gone"),
    BadFile("B5-loop", lambda path: _link(path, FILE), 5, Code.NOT_READABLE, says="loop"),
    BadFile("B6", _cache_link, 0, None),
    BadFile("B10", _odd_path, 0, None),
    BadFile("B10-bad", _odd_path_truncated, 3, Code.DATA_TRUNCATED, "x", file="we\\udcff\\nights"),
)
