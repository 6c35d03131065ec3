"""The entries of a safetensors header, checked one by one and then against each other."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

from adaptool.dtypes import DTYPES, Dtype
from adaptool.errors import InputError
from adaptool.findings import Code, Finding, Severity
from adaptool.store import strict_json
from adaptool.store.limits import Limits
from adaptool.store.safe_names import printable
from adaptool.store.strict_json import StrictJsonError

METADATA = "__metadata__"
FIELDS = ("dtype", "shape", "data_offsets")

Entry: TypeAlias = tuple[int, int, str, Dtype, tuple[int, ...]]
"""Begin and end in the data, name, dtype, shape."""

_DIMENSION_END = 2**63
# The reference counts a tensor's bits in 64 bits and refuses what overflows.
_BITS_END = 2**64
_PAIR = 2
_MOST_EXTRA_FIELDS = 20
_SHOWN = 100
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlist = 60, 33
_AGAIN = "download or copy the file again"
_REWRITE = "write the file again with the safetensors library"


class Entries:
    """The checks of one file's entries; remembers the fields nobody knows for a finding."""

    def __init__(self, file: str, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._extra: dict[str, list[str]] = {}

    def checked(self, document: Mapping[str, Any], data_bytes: int) -> list[Entry]:
        """The entries in the order of their data, which fill `data_bytes` without gap or overlap.

        InputError names the first tensor at fault.
        """
        rows = [self._entry(name, entry) for name, entry in document.items()]
        rows.sort(key=_place)
        self._check_contiguous(rows)
        self._check_end(rows, data_bytes)
        return rows

    def findings(self) -> list[Finding]:
        """One warning for each unknown field, with the number of tensors that have it."""
        return [
            Finding(
                Code.TENSOR_EXTRA_FIELD,
                Severity.WARNING,
                f"unknown field, ignored, in {len(tensors)} tensors",
                file=self._file,
                tensor=tensors[0],
                field=printable(field, most=_SHOWN),
            )
            for field, tensors in list(self._extra.items())[:_MOST_EXTRA_FIELDS]
        ]

    def _entry(self, name: str, entry: object) -> Entry:
        if len(name) * 4 > self._limits.name_bytes:
            self._check_name(name)
        if not isinstance(entry, dict):
            raise self._fault(
                Code.TENSOR_ENTRY_MALFORMED,
                "the tensor's entry must be an object with dtype, shape and data_offsets",
                name,
            )
        if len(entry) != len(FIELDS) or not all(field in entry for field in FIELDS):
            self._check_fields(name, entry)
        dtype = self._dtype(name, entry["dtype"])
        shape = self._shape(name, entry["shape"])
        begin, end = self._offsets(name, entry["data_offsets"])
        bits = prod(shape) * dtype.bits
        if bits != 8 * (end - begin) or bits >= _BITS_END or 0 in shape:
            self._check_size(name, dtype, shape, end - begin)
        return begin, end, name, dtype, shape

    def _check_name(self, name: str) -> None:
        length = len(name.encode())
        if length > self._limits.name_bytes:
            message = f"the name has {length} bytes; the limit is {self._limits.name_bytes}"
            raise self._fault(Code.TENSOR_NAME_UNSAFE, message, printable(name, most=_SHOWN))

    def _check_fields(self, name: str, entry: Mapping[str, Any]) -> None:
        for field in FIELDS:
            if field not in entry:
                raise self._fault(Code.TENSOR_ENTRY_MALFORMED, "is missing", name, field)
        for field in [key for key in entry if key not in FIELDS]:
            try:
                strict_json.check_depth(entry[field])
            except StrictJsonError as error:
                raise self._fault(
                    Code.HEADER_TOO_DEEP, error.message, name, printable(field)
                ) from error
            self._extra.setdefault(field, []).append(name)

    def _dtype(self, name: str, value: object) -> Dtype:
        dtype = DTYPES.get(value) if isinstance(value, str) else None
        if dtype is None:
            message = f"{_shown(value)} is unknown; known are {', '.join(DTYPES)}"
            raise self._fault(Code.DTYPE_UNKNOWN, message, name, "dtype")
        return dtype

    def _shape(self, name: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, list):
            message = f"{_shown(value)} is no array of dimensions"
            raise self._fault(Code.SHAPE_INVALID, message, name, "shape")
        if len(value) > self._limits.dimensions:
            message = f"{len(value)} dimensions; the limit is {self._limits.dimensions}"
            raise self._fault(Code.SHAPE_INVALID, message, name, "shape")
        for dimension in value:
            if type(dimension) is not int or not 0 <= dimension < _DIMENSION_END:
                message = f"{_shown(dimension)} is no dimension: an integer from 0 to 2^63 - 1"
                raise self._fault(Code.SHAPE_INVALID, message, name, "shape")
        return tuple(value)

    def _offsets(self, name: str, value: object) -> tuple[int, int]:
        if type(value) is list and len(value) == _PAIR:
            begin, end = value
            if type(begin) is int and type(end) is int and 0 <= begin <= end:
                return begin, end
        message = f"{_shown(value)} is no pair of a begin and an end that is not before it"
        raise self._fault(Code.OFFSETS_INVALID, message, name, "data_offsets")

    def _check_size(self, name: str, dtype: Dtype, shape: tuple[int, ...], has: int) -> None:
        """The slow, exact form: says which of the sizes is impossible."""
        what = f"shape {list(shape)} of {dtype.name}"
        if prod(max(1, size) for size in shape) * dtype.bits >= _BITS_END:
            message = f"{what} overflows 64 bits"
            raise self._fault(Code.SHAPE_INVALID, message, name, "shape")
        bits = prod(shape) * dtype.bits
        if bits % 8:
            message = f"{what} takes {bits} bits, which is no whole number of bytes"
            raise self._fault(Code.TENSOR_SIZE_MISMATCH, message, name, "shape")
        if bits != 8 * has:
            message = f"{what} needs {bits // 8} bytes, has {has}"
            raise self._fault(Code.TENSOR_SIZE_MISMATCH, message, name, "data_offsets")

    def _check_contiguous(self, rows: list[Entry]) -> None:
        reached, previous = 0, "the start of the data"
        for begin, end, name, _, _ in rows:
            if begin != reached:
                before = printable(previous, most=_SHOWN)
                self._refuse_place(name, (begin, end), reached, before)
            reached, previous = end, name

    def _refuse_place(self, name: str, span: tuple[int, int], reached: int, before: str) -> None:
        begin, end = span
        if begin < reached:
            message = f"bytes {begin}..{end} overlap {before}, which ends at {reached}"
            raise self._fault(Code.OFFSETS_OVERLAP, message, name, "data_offsets")
        message = f"bytes {reached}..{begin} between {before} and this tensor belong to nobody"
        raise self._fault(Code.OFFSETS_HOLE, message, name, "data_offsets")

    def _check_end(self, rows: list[Entry], data_bytes: int) -> None:
        needed = rows[-1][1] if rows else 0
        if needed < data_bytes:
            message = (
                f"{data_bytes - needed} bytes after the last tensor: the file is not canonical"
            )
            raise InputError(
                message,
                code=Code.DATA_TRAILING,
                file=self._file,
                hint=f"do not use it, or {_REWRITE}",
            )
        if needed > data_bytes:
            name, end = next((row[2], row[1]) for row in rows if row[1] > data_bytes)
            missing = f"{end - data_bytes} bytes missing from this tensor"
            message = f"{missing}; the file has {data_bytes} bytes of data of {needed}: truncated"
            raise self._fault(Code.DATA_TRUNCATED, message, name, hint=_AGAIN)

    def _fault(
        self, code: Code, message: str, tensor: str, field: str | None = None, hint: str = _REWRITE
    ) -> InputError:
        return InputError(
            message, code=code, file=self._file, tensor=tensor, field=field, hint=hint
        )


def _place(entry: Entry) -> tuple[int, int]:
    return entry[:2]


def _shown(value: object) -> str:
    """`value` for a message: short and printable, however large or deep it is."""
    return printable(_REPR.repr(value), most=_SHOWN)
