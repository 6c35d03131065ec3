"""Strict JSON documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptool.errors import InputError, ResourceError
from adaptool.findings import Code
from adaptool.store.documents import (
    encode_json,
    parse_json_object,
    read_document,
    read_json_object,
)


def refused(raw: bytes) -> InputError:
    """The error of parsing `raw`."""
    with pytest.raises(InputError) as caught:
        parse_json_object(raw, file="config.json")
    assert caught.value.file == "config.json"
    return caught.value


def test_object_is_read_from_a_file(tmp_path: Path) -> None:
    """A sound document gives what the standard parser gives."""
    document = {"a": [1, -2, 0.5, True, None], "é": {"b": "\U0001f600"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document, indent=3), encoding="utf-8")
    assert read_json_object(path, limit_bytes=1000, what="config") == document


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", Code.JSON_INVALID, "line 1, column 1"),
        (b'{\n "a": }', Code.JSON_INVALID, "line 2, column 7"),
        (b'{"a": 1,}', Code.JSON_INVALID, "line 1"),
        (b'{"a": NaN}', Code.JSON_INVALID, "NaN"),
        (b'{"a": -Infinity}', Code.JSON_INVALID, "-Infinity"),
        (b'{"a": 1e999}', Code.JSON_INVALID, "out of range"),
        (b'{"a": 1%s}' % (b"0" * 5000), Code.JSON_INVALID, "out of range"),
        (b'{"a": "\\ud800"}', Code.JSON_INVALID, "surrogate"),
        (b'{"a": "\x01"}', Code.JSON_INVALID, "control character"),
        (b"{} {}", Code.JSON_INVALID, "more follows"),
        (b"{}\n\n}", Code.JSON_INVALID, "line 3"),
        (b"\xef\xbb\xbf{}", Code.JSON_INVALID, "byte-order mark"),
        (b'{"a":\n"\xff"}', Code.JSON_INVALID, "byte 0xff on line 2"),
        (b"[1]", Code.JSON_NOT_OBJECT, "object"),
        (b"[" * 100_000, Code.JSON_TOO_DEEP, "64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, Code.JSON_TOO_DEEP, "64"),
        (b"\x00\x01", Code.JSON_INVALID, "line 1"),
    ],
)
def test_what_is_not_strict_json_is_refused(raw: bytes, code: Code, says: str) -> None:
    """Each laxness of the standard parser is closed, and the message says what and where."""
    error = refused(raw)
    assert error.code is code
    assert says in error.message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"r": 1, "r": 2}', "r"),
        ('{"rank_pattern": {"a": 1, "a": 1}}', "rank_pattern.a"),
        ('{"a": [{"b": 1}, {"c": {"d": 1, "d": 2}}]}', "a.c.d"),
        ('{"a": {"b": 1, "b": 2}} trailing', "a.b"),
    ],
)
def test_duplicate_key_names_its_path(text: str, field: str) -> None:
    """A key defined twice is named with the keys that lead to it."""
    error = refused(text.encode())
    assert error.code is Code.DUPLICATE_KEY
    assert error.field == field


def test_duplicate_key_before_a_syntax_error_is_still_refused() -> None:
    """Two faults in one document are one error."""
    error = refused(b'{"a": {"b": 1, "b": 2}, "c": }')
    assert error.code is Code.DUPLICATE_KEY


def test_depth_of_64_is_allowed() -> None:
    """64 levels pass, 65 do not (in the table above)."""
    text = '{"a":' * 64 + "1" + "}" * 64
    assert parse_json_object(text.encode(), file="f")


def test_nonfinite_numbers_pass_where_asked_for() -> None:
    """Mamba configs hold `Infinity`; they are read and written back unchanged."""
    raw = b'{\n  "time_step_limit": [\n    0.0,\n    Infinity\n  ]\n}\n'
    value = parse_json_object(raw, file="f", nonfinite=True)
    assert value == {"time_step_limit": [0.0, float("inf")]}
    assert encode_json(value, nonfinite=True) == raw
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json(value)


def test_size_limit_is_exact_and_named(tmp_path: Path) -> None:
    """A document one byte over the limit is refused with both numbers before it is read."""
    path = tmp_path / "index.json"
    path.write_bytes(b"{}" + b" " * 8)
    assert len(read_document(path, limit_bytes=10, what="index")) == 10
    with pytest.raises(ResourceError) as caught:
        read_document(path, limit_bytes=9, what="index")
    assert caught.value.code is Code.JSON_TOO_LARGE
    assert caught.value.message == "the index has 10 bytes; the limit is 9"


def test_written_json_is_sorted_and_ends_with_a_newline() -> None:
    """Keys sorted, indent 2, no escapes, one newline."""
    assert encode_json({"b": [1], "a": "é"}) == (
        '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'.encode()
    )


def test_written_json_does_not_depend_on_order() -> None:
    """The same mapping in another order gives the same bytes."""
    assert encode_json({"x": 1, "a": {"c": 2, "b": 3}}) == (
        encode_json({"a": {"b": 3, "c": 2}, "x": 1})
    )
