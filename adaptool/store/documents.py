"""JSON documents of an artifact: read strictly and within a size, written the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptool.errors import AdaptoolError, InputError, ResourceError
from adaptool.findings import Code
from adaptool.store import strict_json
from adaptool.store.local import LocalSource
from adaptool.store.safe_names import printable
from adaptool.store.strict_json import Fault, StrictJsonError

_CODES = {
    Fault.SYNTAX: Code.JSON_INVALID,
    Fault.DUPLICATE: Code.DUPLICATE_KEY,
    Fault.DEEP: Code.JSON_TOO_DEEP,
}
_BOM = b"\xef\xbb\xbf"
_REPAIR = "repair the file or download it again"


def read_json_object(
    path: Path,
    *,
    limit_bytes: int,
    what: str,
    nonfinite: bool = False,
    too_large: type[AdaptoolError] = ResourceError,
) -> dict[str, Any]:
    """The JSON object in the file at `path`; errors as `read_document` and `parse_json_object`."""
    raw = read_document(path, limit_bytes=limit_bytes, what=what, too_large=too_large)
    return parse_json_object(raw, file=printable(str(path)), nonfinite=nonfinite)


def read_document(
    path: Path, *, limit_bytes: int, what: str, too_large: type[AdaptoolError] = ResourceError
) -> bytes:
    """The bytes of a small file; `too_large` is raised where there are more than `limit_bytes`.

    `what` is what messages call the document. Errors of opening as in LocalSource.
    """
    with LocalSource(path) as source:
        if source.size > limit_bytes:
            message = f"the {what} has {source.size} bytes; the limit is {limit_bytes}"
            hint = f"is this really the {what}?"
            raise too_large(message, code=Code.JSON_TOO_LARGE, file=source.name, hint=hint)
        return source.read(0, source.size)


def parse_json_object(raw: bytes, *, file: str, nonfinite: bool = False) -> dict[str, Any]:
    """The JSON object in `raw`; `file` is what messages call it.

    InputError, with line and column, for what is not strict JSON: duplicate keys, NaN, Infinity,
    numbers out of range, a byte-order mark, more than 64 levels. `nonfinite` admits NaN and
    Infinity, which Python writes into the configs of some models (`time_step_limit`).
    """
    text = _text(raw, file)
    try:
        value, end = strict_json.decode(text, nonfinite=nonfinite)
        strict_json.check_depth(value)
    except StrictJsonError as error:
        raise _refused(error, file) from error
    if end != len(text):
        line = text.count("\n", 0, end) + 1
        message = f"more follows the end of the JSON value on line {line}"
        raise InputError(message, code=Code.JSON_INVALID, file=file, hint=_REPAIR)
    if not isinstance(value, dict):
        message = "must be a JSON object"
        raise InputError(message, code=Code.JSON_NOT_OBJECT, file=file, hint=_REPAIR)
    return value


def encode_json(value: object, *, nonfinite: bool = False) -> bytes:
    """`value` as UTF-8 JSON with sorted keys, two spaces of indent and a newline at the end.

    `nonfinite` lets NaN and Infinity through, as Python writes them; otherwise ValueError.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=nonfinite)
    return text.encode() + b"\n"


def _text(raw: bytes, file: str) -> str:
    if raw.startswith(_BOM):
        message = "starts with a byte-order mark"
        raise InputError(message, code=Code.JSON_INVALID, file=file, hint="save it as plain UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{raw[error.start]:02x} on line {line}"
        raise InputError(message, code=Code.JSON_INVALID, file=file, hint=_REPAIR) from error


def _refused(error: StrictJsonError, file: str) -> InputError:
    field = ".".join(printable(key) for key in error.path) or None
    message = error.message
    if error.fault is Fault.SYNTAX:
        message = f"is not valid JSON: {message}"
    code = _CODES[error.fault]
    return InputError(message, code=code, file=file, field=field, hint=_REPAIR)
