"""The header of a safetensors file: read strictly, written as the library writes it.

    u64 little-endian N | N bytes of JSON | data

Every rule of the reference implementation (safetensors 0.8, tensor.rs, `Metadata::validate`) is
kept, and what it lets through but two readers may read differently is refused as well. Messages
name the file, the tensor, the field and the numbers; the reference names no file.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from adaptool.dtypes import DTYPES, Dtype
from adaptool.errors import InputError, InternalError, ResourceError
from adaptool.findings import Code, Finding, Severity
from adaptool.store import strict_json
from adaptool.store.entries import METADATA, Entries, Entry
from adaptool.store.limits import Limits
from adaptool.store.magic import SNIFFED_BYTES, foreign
from adaptool.store.safe_names import printable
from adaptool.store.source import Source
from adaptool.store.strict_json import Fault, StrictJsonError
from adaptool.store.tensors import TensorRef

__all__ = ["Header", "Limits", "canonical_order", "encode_header", "read_header", "tensor_bytes"]

LENGTH_BYTES = 8
ALIGNMENT = 8
# The reference refuses to read or write longer headers (`MAX_HEADER_SIZE`).
FORMAT_HEADER_BYTES = 100_000_000
_ENTRY_MARK = b'"data_offsets"'
_AGAIN = "download or copy the file again"
_REWRITE = "write the file again with the safetensors library"
_DTYPE_RANK = MappingProxyType({name: rank for rank, name in enumerate(DTYPES)})


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says it holds.

    `tensors` in the order of their data; `raw` is the length and the JSON as they lie on disk.
    """

    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]
    raw: bytes
    findings: tuple[Finding, ...] = ()


def read_header(source: Source, *, limits: Limits | None = None) -> Header:
    """Read and check the header of `source`; the data itself is not read.

    InputError names what is wrong; ResourceError where there are more tensors than `limits` allow.
    """
    limits = limits or Limits()
    raw = _read_raw(source, limits)
    with _collector_paused():
        return _header(raw, source, limits)


def _header(raw: bytes, source: Source, limits: Limits) -> Header:
    document, padded = _parse(raw, source.name, limits)
    metadata = _metadata(document.pop(METADATA, None), source.name)
    if len(document) > limits.tensors:
        raise _too_many(len(document), limits, source.name)
    entries = Entries(source.name, limits)
    rows = entries.checked(document, source.size - len(raw))
    findings = (*_notes(source.name, padded=padded, empty=not rows), *entries.findings())
    return Header(_refs(rows, source, len(raw)), MappingProxyType(metadata), raw, findings)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the cycle collector from walking, again and again, objects that hold no cycle.

    It doubles the time of a large header. Threads that overlap here leave it as they found it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tensor_bytes(dtype: Dtype, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this dtype and shape takes (sub-byte dtypes rounded up)."""
    return (prod(shape) * dtype.bits + 7) // 8


def canonical_order(
    entries: Iterable[tuple[str, Dtype, tuple[int, ...]]],
) -> list[tuple[str, Dtype, tuple[int, ...]]]:
    """The order in which the safetensors library writes: dtype descending, then name bytes."""
    return sorted(entries, key=lambda entry: (-_DTYPE_RANK[entry[1].name], entry[0].encode()))


def encode_header(
    entries: Sequence[tuple[str, Dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> bytes:
    """The length and JSON of a file whose data follow in the order of `entries`.

    Entries are (name, dtype, shape). In `canonical_order`, and with one metadata key at most, the
    bytes are those of the safetensors library; its order of more keys is random, ours is sorted.
    ResourceError where the header is longer than the format allows.
    """
    document: dict[str, Any] = {}
    if metadata is not None:
        document[METADATA] = dict(sorted(metadata.items()))
    end = 0
    for name, dtype, shape in entries:
        if name in document or name == METADATA:
            message = f"planned to write {printable(name)!r} twice"
            raise InternalError(message, code=Code.INTERNAL, tensor=name)
        begin, end = end, end + tensor_bytes(dtype, shape)
        document[name] = {"dtype": dtype.name, "shape": shape, "data_offsets": (begin, end)}
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % ALIGNMENT)
    if len(body) > FORMAT_HEADER_BYTES:
        message = f"a header of {len(body)} bytes exceeds the format's {FORMAT_HEADER_BYTES}"
        raise ResourceError(message, code=Code.LIMIT_EXCEEDED, hint="write more shards")
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def _read_raw(source: Source, limits: Limits) -> bytes:
    """The length and JSON as they lie on disk."""
    head = _read(source, min(source.size, SNIFFED_BYTES))
    found = foreign(head)
    if found is not None:
        raise InputError(found.message, code=found.code, file=source.name, hint=found.hint)
    if len(head) < LENGTH_BYTES:
        message = f"is {len(head)} bytes long; a safetensors file has at least {LENGTH_BYTES}"
        raise InputError(message, code=Code.HEADER_TOO_SHORT, file=source.name, hint=_AGAIN)
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    _check_length(length, source, limits)
    return _read(source, LENGTH_BYTES + length)


def _read(source: Source, length: int) -> bytes:
    buffer = bytearray(length)
    source.read_into(0, memoryview(buffer))
    return bytes(buffer)


def _check_length(length: int, source: Source, limits: Limits) -> None:
    if length > limits.header_bytes:
        message = f"header length {length} exceeds the limit of {limits.header_bytes} bytes"
        hint = "this is probably no safetensors file"
        raise InputError(message, code=Code.HEADER_TOO_LARGE, file=source.name, hint=hint)
    if LENGTH_BYTES + length > source.size:
        message = f"header says {length} bytes, file has {source.size}: truncated"
        raise InputError(message, code=Code.HEADER_TRUNCATED, file=source.name, hint=_AGAIN)
    if length == 0:
        message = "header length is 0, so there is no header"
        hint = "a file full of zeros is left by a power cut; " + _AGAIN
        raise InputError(message, code=Code.HEADER_NOT_JSON, file=source.name, hint=hint)


def _too_many(count: int, limits: Limits, file: str) -> ResourceError:
    message = f"describes {count} tensors; the limit is {limits.tensors}"
    return ResourceError(message, code=Code.LIMIT_EXCEEDED, file=file, hint="split the file")


def _parse(raw: bytes, file: str, limits: Limits) -> tuple[dict[str, Any], int]:
    """The JSON object of a header, and how many white-space bytes precede it."""
    count = raw.count(_ENTRY_MARK)
    if count > limits.tensors:  # before a gigabyte is spent on parsing them
        raise _too_many(count, limits, file)
    text = _text(raw, file)
    try:
        document, end = strict_json.decode(text)
    except StrictJsonError as error:
        raise _not_json(error, file) from error
    if not isinstance(document, dict):
        message = f"header must be a JSON object, not {_json_type(document)}"
        raise InputError(message, code=Code.HEADER_NOT_OBJECT, file=file, hint=_REWRITE)
    if end != len(text):
        raise _garbage(text, end, file)
    return document, strict_json.skip_whitespace(text)


def _text(raw: bytes, file: str) -> str:
    try:
        text = raw[LENGTH_BYTES:].decode()
    except UnicodeDecodeError as error:
        offset = LENGTH_BYTES + error.start
        message = f"header is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset}"
        raise InputError(message, code=Code.HEADER_NOT_UTF8, file=file, hint=_AGAIN) from error
    if text.startswith("\ufeff"):
        message = "header starts with a byte-order mark"
        raise InputError(message, code=Code.HEADER_NOT_JSON, file=file, hint=_REWRITE)
    return text


def _not_json(error: StrictJsonError, file: str) -> InputError:
    """The error for a header that is no strict JSON; names the tensor of a duplicate key."""
    if error.fault is Fault.DUPLICATE:
        return _duplicate(error, file)
    if error.fault is Fault.DEEP:
        message = f"header is {error.message}"
        return InputError(message, code=Code.HEADER_TOO_DEEP, file=file, hint=_REWRITE)
    message = f"header is not valid JSON: {error.message}"
    return InputError(message, code=Code.HEADER_NOT_JSON, file=file, hint=_AGAIN)


def _duplicate(error: StrictJsonError, file: str) -> InputError:
    path = [printable(key) for key in error.path]
    tensor = path[0] if path and path[0] != METADATA else None
    field = ".".join(path if tensor is None else path[1:]) or None
    message = "is defined twice; readers disagree on which one counts"
    code = Code.DUPLICATE_KEY
    return InputError(message, code=code, file=file, tensor=tensor, field=field, hint=_REWRITE)


def _garbage(text: str, end: int, file: str) -> InputError:
    count = len(text[end:].encode())
    message = f"{count} bytes of garbage after the header's JSON"
    hint = _REWRITE
    if text.startswith('{},"__metadata__"'):
        hint = "a known fault of safetensors 0.8.0, which cannot save an empty set with metadata"
    return InputError(message, code=Code.HEADER_GARBAGE, file=file, hint=hint)


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    words = {list: "an array", dict: "an object", str: "a string", bool: "a boolean"}
    return words.get(type(value), "a number")


def _metadata(value: object, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _not_string(METADATA, f"must be an object of strings, not {_json_type(value)}", file)
    for key, text in value.items():
        if not isinstance(text, str):
            field = f"{METADATA}.{printable(key, most=200)}"
            raise _not_string(field, f"must be a string, not {_json_type(text)}", file)
    return value


def _not_string(field: str, message: str, file: str) -> InputError:
    code = Code.METADATA_NOT_STRING
    return InputError(message, code=code, file=file, field=field, hint=_REWRITE)


def _refs(rows: Sequence[Entry], source: Source, start: int) -> Mapping[str, TensorRef]:
    return MappingProxyType(
        {
            name: TensorRef(name, dtype, shape, start + begin, end - begin, source)
            for begin, end, name, dtype, shape in rows
        }
    )


def _notes(file: str, *, padded: int, empty: bool) -> list[Finding]:
    notes = []
    if padded:
        message = f"{padded} white-space bytes before the header's JSON"
        notes.append(Finding(Code.HEADER_PADDED_START, Severity.NOTE, message, file=file))
    if empty:
        message = "holds no tensors"
        notes.append(Finding(Code.NO_TENSORS, Severity.NOTE, message, file=file))
    return notes
