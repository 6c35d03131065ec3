r"""Rank and alpha patterns: regular expressions from untrusted configs, matched safely.

PEFT looks a module up with `re.match(rf"(.*\.)?({key})$", module)`, first key in dict order that
matches (PEFT >= 0.15, `get_pattern_key`). Keys come from files, so an expression that could take
exponential time is refused before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The standard library's own parser of regular expressions; there is no public door to it.
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, Generic, TypeVar

from adaptool.errors import InputError
from adaptool.findings import Code

MOST_PATTERNS = 100_000
LONGEST_PATTERN = 512
T = TypeVar("T")
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]*")
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
_ENDLESS = 64
MOST_UNBOUNDED = 3


class PatternTable(Generic[T]):
    """Values by pattern, looked up as PEFT does: the first key that matches wins."""

    def __init__(self, patterns: Mapping[str, T], *, field: str) -> None:
        """Compile `patterns`; InputError names `field` and the key that cannot be used."""
        if len(patterns) > MOST_PATTERNS:
            message = f"{len(patterns)} patterns; at most {MOST_PATTERNS} are read"
            raise InputError(message, code=Code.PATTERN_UNSAFE, field=field)
        self._plain: dict[str, tuple[int, T]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], T]] = []
        for order, (key, value) in enumerate(patterns.items()):
            self._add(order, key, value, field)

    def _add(self, order: int, key: str, value: T, field: str) -> None:
        # A dot is the only metacharacter a module path holds. It is taken for a dot: PEFT's
        # "any character" differs only for paths no library writes, and 10^4 expressions on 10^4
        # modules would take minutes.
        if _PLAIN.fullmatch(key):
            self._plain.setdefault(key, (order, value))
        else:
            self._expressions.append((order, _compiled(key, field), value))

    def get(self, module: str, default: T) -> T:
        """The value of the first pattern that matches `module`."""
        best = self._first_plain(module)
        for order, expression, value in self._expressions:
            if best is not None and best[0] < order:
                break
            if expression.match(module):
                return value
        return best[1] if best is not None else default

    def _first_plain(self, module: str) -> tuple[int, T] | None:
        best = None
        suffix = module
        while suffix:
            found = self._plain.get(suffix)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
            suffix = suffix.partition(".")[2]
        return best


def _compiled(key: str, field: str) -> re.Pattern[str]:
    where = f"{field}[{key!r}]" if len(key) <= LONGEST_PATTERN else field
    check_expression(key, field=where)
    return re.compile(rf"(.*\.)?({key})$")


def check_expression(expression: str, *, field: str) -> None:
    """InputError unless `expression` is a valid regular expression that runs in linear-ish time.

    Refused: more than 512 characters, a repeat inside an unbounded repeat, more than three
    unbounded repeats, back references.
    """
    if len(expression) > LONGEST_PATTERN:
        message = f"pattern of {len(expression)} characters; at most {LONGEST_PATTERN} are read"
        raise InputError(message, code=Code.PATTERN_UNSAFE, field=field)
    if _PLAIN.fullmatch(expression):
        return
    try:
        parsed = _parser.parse(expression)
    except (re.error, RecursionError, OverflowError) as error:
        message = f"not a valid regular expression: {error}"
        raise InputError(message, code=Code.PATTERN_INVALID, field=field) from None
    unbounded = _count_unbounded(parsed, inside=False)
    if unbounded is None or unbounded > MOST_UNBOUNDED:
        message = "this regular expression can take exponential time"
        hint = "name the modules plainly, without nested repeats or back references"
        raise InputError(message, code=Code.PATTERN_UNSAFE, field=field, hint=hint)


def _count_unbounded(parsed: Any, *, inside: bool) -> int | None:  # noqa: ANN401 - re's own tree
    """How many unbounded repeats `parsed` holds; None where one is nested or refers back."""
    total = 0
    for op, argument in parsed:
        if op in (_constants.GROUPREF, _constants.GROUPREF_EXISTS):
            return None
        endless = op in _REPEATS and argument[1] >= _ENDLESS
        if inside and op in _REPEATS and argument[1] > 1:
            return None
        inner = 0
        for child in _children(op, argument):
            count = _count_unbounded(child, inside=inside or endless)
            if count is None:
                return None
            inner += count
        total += inner + (1 if endless else 0)
    return total


def _children(op: Any, argument: Any) -> list[Any]:  # noqa: ANN401 - re's own tree
    if op in _REPEATS:
        return [argument[2]]
    if op is _constants.SUBPATTERN:
        return [argument[3]]
    if op is _constants.BRANCH:
        return list(argument[1])
    if op in (_constants.ASSERT, _constants.ASSERT_NOT):
        return [argument[1]]
    if op is _constants.ATOMIC_GROUP:
        return [argument]
    return []
