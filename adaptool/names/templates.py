r"""Dotted paths with `#` where a number varies, and tables that are looked up by a path.

`blocks.#.attn.to_out.0` has one number that varies and one that is part of the name. Trainers
flatten paths (`blocks_3_attn_to_out_0`), which cannot be undone without knowing the names: a table
can be asked with either form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_VARIES = "#"
# A number that stands alone: between dots (or underscores, in a flattened path) or at an end.
_DOTTED = re.compile(r"(?:(?<=\.)|^)(?:\d+|#)(?=\.|$)")
_FLAT = re.compile(r"(?:(?<=_)|^)(?:\d+|#)(?=_|$)")


def filled(template: str, numbers: Sequence[str]) -> str:
    """The template with its varying numbers put in, in order."""
    head, *rest = template.split(_VARIES)
    return head + "".join(map("".join, zip(numbers, rest, strict=True)))


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """`fixed`: for each number of the path, the one that must stand there; None where it varies."""

    fixed: tuple[str | None, ...]
    value: T

    def numbers(self, found: Sequence[str]) -> tuple[str, ...] | None:
        """The varying numbers among those found; None where a fixed one differs."""
        pairs = list(zip(self.fixed, found, strict=True))
        if any(fixed is not None and fixed != number for fixed, number in pairs):
            return None
        return tuple(number for fixed, number in pairs if fixed is None)


class Table(Generic[T]):
    """Values by template; the first template that a path fits wins."""

    def __init__(self, entries: Iterable[tuple[str, T]], *, flat: bool = False) -> None:
        """`flat`: paths are asked for with `_` for every dot."""
        self._number = _FLAT if flat else _DOTTED
        self._entries: dict[str, list[_Entry[T]]] = {}
        for template, value in entries:
            text = template.replace(".", "_") if flat else template
            fixed = [None if part == _VARIES else part for part in self._number.findall(text)]
            entry = _Entry(tuple(fixed), value)
            self._entries.setdefault(self._number.sub(_VARIES, text), []).append(entry)

    def find(self, path: str) -> tuple[T, tuple[str, ...]] | None:
        """The value for `path` and the numbers that vary in it, in order; None for none."""
        found = self._number.findall(path)
        for entry in self._entries.get(self._number.sub(_VARIES, path), ()):
            numbers = entry.numbers(found)
            if numbers is not None:
                return entry.value, numbers
        return None
