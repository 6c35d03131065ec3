"""GGUF files: the header read strictly, and written.

    "GGUF" | u32 version | u64 tensors | u64 pairs | pairs | tensor records | padding | data

Little-endian; versions 2 and 3 are alike. Every tensor begins at a multiple of `general.alignment`
(32 where absent) and follows the one before it. What llama.cpp refuses is refused here as well.
Source: ggml, docs/gguf.md and src/gguf.cpp.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from adaptool.dtypes import Dtype
from adaptool.errors import InputError, MismatchError, ResourceError
from adaptool.findings import Code
from adaptool.store.ggml_types import IDS, QUANTIZED, TYPES
from adaptool.store.header import Header, tensor_bytes
from adaptool.store.limits import Limits
from adaptool.store.safe_names import printable
from adaptool.store.source import Source
from adaptool.store.tensors import TensorRef

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
# A power of two above that is no alignment but an attempt to make the file sparse.
LARGEST_ALIGNMENT = 1 << 20
MOST_DIMENSIONS = 4
MOST_NAME_BYTES = 63
# The specification's limit for keys.
MOST_KEY_BYTES = 65_535
MOST_PAIRS = 100_000
# A list that is longer is a model's vocabulary; it is passed over.
MOST_KEPT = 1024
BLOCK = 1 << 20
_AGAIN = "download or copy the file again"
# type id -> struct format. Source: ggml, include/gguf.h.
_NUMBERS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
UINT32, FLOAT32, STRING, LIST = 4, 6, 8, 9


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a GGUF file says it holds.

    `fields` are its key-value pairs; a list of more than 1024 elements stands there as its length
    alone. `header` says the same in the words of a safetensors header, numbers as JSON.
    """

    fields: Mapping[str, Any]
    header: Header


def is_gguf(source: Source) -> bool:
    """Whether the file begins as a GGUF file does."""
    if source.size < len(MAGIC):
        return False
    head = bytearray(len(MAGIC))
    source.read_into(0, memoryview(head))
    return bytes(head) == MAGIC


def read_gguf(source: Source, *, limits: Limits | None = None) -> Gguf:
    """Read and check the header of `source`; the data itself is not read.

    InputError names what is wrong; MismatchError for a quantized tensor, which holds no plain
    numbers; ResourceError where there is more of something than `limits` allow.
    """
    limits = limits or Limits()
    cursor = _Cursor(source, limits)
    _check_version(cursor)
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    _check_count(tensors, limits.tensors, "tensors", source)
    _check_count(pairs, MOST_PAIRS, "key-value pairs", source)
    fields = _fields(cursor, pairs)
    alignment = _alignment(fields, source)
    rows = [_tensor(cursor) for _ in range(tensors)]
    start = cursor.at + -cursor.at % alignment
    refs = _placed(rows, start, alignment, source)
    metadata = {name: _text(value) for name, value in fields.items()}
    header = Header(MappingProxyType(refs), MappingProxyType(metadata), cursor.seen())
    return Gguf(MappingProxyType(fields), header)


def encode_gguf(
    fields: Mapping[str, str | float], entries: Sequence[tuple[str, Dtype, tuple[int, ...]]]
) -> tuple[bytes, list[int], int]:
    """The header of a file whose tensors follow in the order of `entries`, offsets, and its size.

    Entries are (name, dtype, shape) with the shape as torch has it. Strings, u32 and f32 are what
    `fields` may hold. Offsets are absolute; gaps between tensors and at the end are padding.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(entries), len(fields))]
    for name, value in fields.items():
        parts += [_string(name), _value(value)]
    places, end = [], 0
    for name, dtype, shape in entries:
        places.append(end)
        sizes = shape[::-1]
        record = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, IDS[dtype.name], end)
        parts += [_string(name), record]
        end += tensor_bytes(dtype, shape)
        end += -end % DEFAULT_ALIGNMENT
    raw = b"".join(parts)
    raw += bytes(-len(raw) % DEFAULT_ALIGNMENT)
    return raw, [len(raw) + place for place in places], len(raw) + end


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    return struct.pack("<If", FLOAT32, value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Cursor:
    """Reads forward through the header; never past the file's end or the limit."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.at = 0
        self._source = source
        self._limits = limits
        self._raw = bytearray()

    @property
    def file(self) -> str:
        """What messages call the file."""
        return self._source.name

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.ahead(count)
        stop = self.at + count
        if stop > len(self._raw):
            self._fetch(stop)
        found = bytes(self._raw[self.at : stop])
        self.at = stop
        return found

    def ahead(self, count: int) -> None:
        """InputError unless `count` more bytes are there and may be read."""
        stop = self.at + count
        if stop > self._source.size:
            message = f"header needs {stop} bytes, file has {self._source.size}: truncated"
            raise InputError(message, code=Code.HEADER_TRUNCATED, file=self.file, hint=_AGAIN)
        if stop > self._limits.header_bytes:
            message = f"header needs {stop} bytes; the limit is {self._limits.header_bytes}"
            raise InputError(message, code=Code.HEADER_TOO_LARGE, file=self.file)

    def number(self, form: str) -> Any:  # noqa: ANN401 - what `form` says
        """One number of a struct format."""
        packed = struct.Struct(f"<{form}")
        return packed.unpack(self.take(packed.size))[0]

    def string(self, most: int | None = None) -> str:
        """A length and as many bytes of UTF-8."""
        length = self.number("Q")
        if most is not None and length > most:
            message = f"a name of {length} bytes at offset {self.at}; at most {most} are allowed"
            raise InputError(message, code=Code.TENSOR_NAME_UNSAFE, file=self.file, hint=_AGAIN)
        start = self.at
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            message = f"text at offset {start + error.start} is not UTF-8"
            raise InputError(
                message, code=Code.HEADER_NOT_UTF8, file=self.file, hint=_AGAIN
            ) from error

    def seen(self) -> bytes:
        """Everything read so far."""
        return bytes(self._raw[: self.at])

    def _fetch(self, stop: int) -> None:
        """Read blocks until `stop` is there."""
        have = len(self._raw)
        more = max(stop - have, min(BLOCK, self._source.size - have))
        self._raw += bytes(more)
        # A view of a growing buffer would pin it.
        block = bytearray(more)
        self._source.read_into(have, memoryview(block))
        self._raw[have:] = block


def _check_version(cursor: _Cursor) -> None:
    if cursor.take(len(MAGIC)) != MAGIC:
        message = "does not begin with GGUF"
        raise InputError(message, code=Code.FOREIGN_FORMAT, file=cursor.file)
    version = cursor.number("I")
    if version in (2, VERSION):
        return
    if version & 0xFFFF == 0:
        message, hint = "is a big-endian GGUF file", "write it again on a little-endian machine"
    else:
        message, hint = f"is GGUF version {version}; 2 and 3 are read", "convert it with llama.cpp"
    raise MismatchError(message, code=Code.UNSUPPORTED, file=cursor.file, hint=hint)


def _check_count(count: int, most: int, what: str, source: Source) -> None:
    if count > most:
        message = f"describes {count} {what}; the limit is {most}"
        raise ResourceError(message, code=Code.LIMIT_EXCEEDED, file=source.name, hint=_AGAIN)


def _fields(cursor: _Cursor, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.string(most=MOST_KEY_BYTES)
        if name in fields:
            message = "is given twice"
            raise InputError(
                message, code=Code.DUPLICATE_KEY, file=cursor.file, field=printable(name)
            )
        fields[name] = _field(cursor, name, cursor.number("I"))
    return fields


def _field(cursor: _Cursor, name: str, kind: int) -> Any:  # noqa: ANN401 - what the file holds
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == STRING:
        return cursor.string()
    if kind == LIST:
        return _list(cursor, name, cursor.number("I"), cursor.number("Q"))
    raise _unknown_type(cursor, name, kind)


def _list(cursor: _Cursor, name: str, kind: int, count: int) -> list[Any]:
    """The elements; of a list too long to be an adapter's, only how many there are."""
    kept = count <= MOST_KEPT
    if kind in _NUMBERS:
        size = struct.calcsize(_NUMBERS[kind])
        cursor.ahead(count * size)
        raw = cursor.take(count * size)
        return list(struct.unpack(f"<{count}{_NUMBERS[kind]}", raw)) if kept else [count]
    if kind == STRING:
        cursor.ahead(count * 8)  # each has a length at least
        if not kept:
            for _ in range(count):
                cursor.take(cursor.number("Q"))
            return [count]
        return [cursor.string() for _ in range(count)]
    raise _unknown_type(cursor, name, kind)


def _unknown_type(cursor: _Cursor, name: str, kind: int) -> InputError:
    message = f"has the value type {kind}, which is none of GGUF's"
    return InputError(
        message, code=Code.FIELD_TYPE, file=cursor.file, field=printable(name), hint=_AGAIN
    )


def _alignment(fields: Mapping[str, Any], source: Source) -> int:
    found = fields.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if type(found) is not int or not 0 < found <= LARGEST_ALIGNMENT or found & (found - 1):
        message = f"is {found!r}, must be a power of two up to {LARGEST_ALIGNMENT}"
        raise InputError(message, code=Code.FIELD_VALUE, file=source.name, field=ALIGNMENT)
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    """One tensor record; `offset` from the start of the data."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int


def _tensor(cursor: _Cursor) -> _Row:
    name = cursor.string(most=MOST_NAME_BYTES)
    dimensions = cursor.number("I")
    if dimensions > MOST_DIMENSIONS:
        message = f"has {dimensions} dimensions; at most {MOST_DIMENSIONS} are allowed"
        raise _in_tensor(cursor, name, message, Code.SHAPE_INVALID)
    sizes = [cursor.number("Q") for _ in range(dimensions)]
    if prod(sizes) >= 1 << 60 or any(size >= 1 << 60 for size in sizes):
        message = f"shape {sizes[::-1]} holds more elements than fit a file"
        raise _in_tensor(cursor, name, message, Code.SHAPE_INVALID)
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind in QUANTIZED:
        message = f"is quantized ({QUANTIZED[kind]}); only F32, F16, BF16 and F64 are read"
        hint = "write the adapter again with --outtype f16"
        code, tensor = Code.DTYPE_NOT_COMPUTABLE, printable(name)
        raise MismatchError(message, code=code, file=cursor.file, tensor=tensor, hint=hint)
    if kind not in TYPES:
        message = f"has the type {kind}, which is none of ggml's known here"
        raise _in_tensor(cursor, name, message, Code.DTYPE_UNKNOWN)
    return _Row(name, TYPES[kind], tuple(sizes[::-1]), offset)


def _in_tensor(cursor: _Cursor, name: str, message: str, code: Code) -> InputError:
    return InputError(message, code=code, file=cursor.file, tensor=printable(name), hint=_AGAIN)


def _placed(
    rows: Sequence[_Row], start: int, alignment: int, source: Source
) -> dict[str, TensorRef]:
    """The tensors, each where it must be: after the one before, at the alignment, in the file."""
    refs: dict[str, TensorRef] = {}
    expected = 0
    for row in rows:
        length = tensor_bytes(row.dtype, row.shape)
        problem = _problem(row, length, start, expected, source)
        if row.name in refs:
            problem = (Code.DUPLICATE_KEY, "is defined twice")
        if problem is not None:
            code, message = problem
            name = printable(row.name)
            raise InputError(message, code=code, file=source.name, tensor=name, hint=_AGAIN)
        refs[row.name] = TensorRef(
            row.name, row.dtype, row.shape, start + row.offset, length, source
        )
        expected += length + -length % alignment
    if source.size > start + expected and rows:
        message = f"{source.size - start - expected} bytes follow the last tensor"
        raise InputError(message, code=Code.DATA_TRAILING, file=source.name, hint=_AGAIN)
    return refs


def _problem(
    row: _Row, length: int, start: int, expected: int, source: Source
) -> tuple[Code, str] | None:
    if row.offset != expected:
        return Code.OFFSETS_INVALID, f"begins at {row.offset}, must begin at {expected}"
    if start + row.offset + length > source.size:
        end = start + row.offset + length
        return Code.DATA_TRUNCATED, f"ends at byte {end}, the file has {source.size}: truncated"
    return None
