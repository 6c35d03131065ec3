"""Text from outside made safe to print, and numbers with their units."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

LONGEST = 600
_STEP = 1000
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def printable(text: str) -> str:
    """`text` on one line without control characters, so that no file can steer a terminal.

    Names come from untrusted files: escapes, line ends, bidirectional marks and lone surrogates
    are written as backslash escapes, and more than 600 characters are cut in the middle.
    """
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def json_text(body: Mapping[str, Any]) -> str:
    """One JSON object on one line, in ASCII; a number that is not finite becomes null."""
    return json.dumps(_finite({"schema": 1, **body}), allow_nan=False)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def byte_count(count: int) -> str:
    """`3.1 GB`, in decimal units as the Hub shows them."""
    scaled = float(count)
    for unit in _UNITS:
        # Compared after rounding to what is shown: 999 950 B is 1.0 MB, not 1000.0 kB.
        shown = f"{scaled:.0f}" if unit == "B" else f"{scaled:.1f}"
        if float(shown) < _STEP:
            return f"{shown} {unit}"
        scaled /= _STEP
    return f"{scaled:.1f} EB"


def percent(fraction: float) -> str:
    """`61.2 %`; only what is all of it is 100 %."""
    shown = f"{100 * fraction:.3g}"
    return "99.9 %" if shown == "100" and fraction < 1 else f"{shown} %"


def counted(count: int, noun: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
