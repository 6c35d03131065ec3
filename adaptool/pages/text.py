"""Foreign text and numbers as they stand in a page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from statistics import median_low

from adaptool.store.safe_names import printable

LONGEST = 300


def escaped(text: str) -> str:
    """`text` for a page's body or an attribute: no markup, no control characters, no marks."""
    return html.escape(printable(text, most=LONGEST))


def number(value: float | None) -> str:
    """Three digits, a dash for what is unknown."""
    return "–" if value is None else f"{value:.3g}"  # noqa: RUF001 - a dash, as in a table


def count(value: int) -> str:
    """`1,953,280`; from ten million on `284 M`."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if value >= max(size, 10**7):
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"


def percent(value: float | None) -> str:
    """`1.23 %`."""
    return "–" if value is None else f"{100 * value:.3g} %"  # noqa: RUF001


def spread(values: Iterable[float | None]) -> str:
    """`0.12 to 0.84`, or the one number that all are."""
    known = [value for value in values if value is not None]
    if not known:
        return number(None)
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} to {high}"


def middle_and_most(values: Iterable[float | None]) -> str:
    """`5 (≤ 8)`: a value that half of them do not exceed, and the largest where it is another."""
    known = [value for value in values if value is not None]
    if not known:
        return number(None)
    usual, most = number(median_low(known)), number(max(known))
    return usual if usual == most else f"{usual} <small>(≤ {most})</small>"


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path; all of it where two end alike, or it has no name."""
    names = [PurePath(path).name for path in paths]
    return [
        name if name and names.count(name) == 1 else path
        for name, path in zip(names, paths, strict=True)
    ]
