"""JSON as strictly as serde_json reads it, and stricter where the format of tensors asks it.

The standard parser lets through duplicate keys, NaN and Infinity, numbers that overflow and lone
surrogates; each would let two readers see two different documents in one file.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

MOST_DEPTH = 64
# Longest integer that fits 64 bits; serde_json takes longer ones for floats, and so does this.
_LONGEST_INTEGER = 20
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class Fault(Enum):
    """What is wrong with a document."""

    SYNTAX = auto()
    DUPLICATE = auto()
    DEEP = auto()


class StrictJsonError(ValueError):
    """A refused document; `path` are the keys that lead to the fault."""

    def __init__(self, fault: Fault, message: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.path = path


@dataclass(frozen=True, slots=True)
class _Pairs:
    """An object as written, for finding where a duplicate lies."""

    items: list[tuple[str, Any]] = field(default_factory=list)


def _integer(text: str) -> int | float:
    if text == "-0":  # a float to serde_json, so no size and no offset
        return -0.0
    return int(text) if len(text) <= _LONGEST_INTEGER else _real(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise StrictJsonError(Fault.SYNTAX, f"the number {text[:20]} is out of range")
    return value


def _constant(text: str) -> float:
    raise StrictJsonError(Fault.SYNTAX, f"{text} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise StrictJsonError(Fault.DUPLICATE, "a key is defined twice")
    return value


def _decoder(*, nonfinite: bool = False) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_int=_integer,
        parse_float=_real,
        parse_constant=float if nonfinite else _constant,
    )


_STRICT = _decoder()
_NONFINITE = _decoder(nonfinite=True)


def skip_whitespace(text: str, start: int = 0) -> int:
    """Index of the first character at or after `start` that is no JSON white space."""
    found = _WHITESPACE.match(text, start)
    return found.end() if found else start


def decode(text: str, *, nonfinite: bool = False) -> tuple[Any, int]:
    """The first JSON value of `text`, and the index where what follows it begins.

    White space around it is skipped. `nonfinite` admits NaN and Infinity, which Python writes
    into some model configs. StrictJsonError for everything else that is not JSON.
    """
    decoder = _NONFINITE if nonfinite else _STRICT
    try:
        value, end = decoder.raw_decode(text, skip_whitespace(text))
    except json.JSONDecodeError as error:
        message = f"{error.msg} (line {error.lineno}, column {error.colno})"
        raise StrictJsonError(Fault.SYNTAX, message) from error
    except RecursionError as error:
        raise _too_deep() from error
    except StrictJsonError as error:
        if error.fault is Fault.DUPLICATE:
            raise _located_duplicate(text) from error
        raise
    if _SURROGATE_ESCAPE.search(text):
        _refuse_surrogates(value)
    return value, skip_whitespace(text, end)


def check_depth(value: object) -> None:
    """StrictJsonError where arrays and objects are nested more than 64 deep."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> StrictJsonError:
    return StrictJsonError(Fault.DEEP, f"nested more than {MOST_DEPTH} levels deep")


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _located_duplicate(text: str) -> StrictJsonError:
    """Parse again, keeping objects as pairs, and say which key is the double one."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=float)
    try:
        value, _ = decoder.raw_decode(text, skip_whitespace(text))
    except (ValueError, RecursionError):  # something further on is wrong as well
        return StrictJsonError(Fault.DUPLICATE, "a key is defined twice")
    path = _duplicate_path(value)
    return StrictJsonError(Fault.DUPLICATE, f"{path[-1]!r} is defined twice", path)


def _duplicate_path(root: object) -> tuple[str, ...]:
    waiting: list[tuple[tuple[str, ...], object]] = [((), root)]
    for path, value in waiting:
        if isinstance(value, list):
            waiting.extend((path, child) for child in value)
        if not isinstance(value, _Pairs):
            continue
        seen: set[str] = set()
        for key, child in value.items:
            if key in seen:
                return (*path, key)
            seen.add(key)
            waiting.append(((*path, key), child))
    return ("an object",)


def _refuse_surrogates(value: object) -> None:
    check_depth(value)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        message = "a string holds half of a surrogate pair, which is no character"
        raise StrictJsonError(Fault.SYNTAX, message) from error
