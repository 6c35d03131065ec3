r"""Rank and alpha patterns: regular expressions from untrusted configs, matched safely.

PEFT looks a module up with `re.match(rf"(.*\.)?({key})$", module)`, first key in dict order that
matches (PEFT >= 0.15, `get_pattern_key`). Keys come from files, so an expression that could take
exponential time is refused before it runs: a bound on the number of ways in which it can match is
counted on its syntax tree.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping

# The standard library's own parser of regular expressions; there is no public door to it.
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, Generic, TypeVar

from adaptool.errors import InputError, ResourceError
from adaptool.findings import Code

MOST_PATTERNS = 100_000
MOST_EXPRESSIONS = 1000
LONGEST_PATTERN = 512
LONGEST_PATH = 512
T = TypeVar("T")
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]*")
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
# The length of path that ways are counted on: three `.*` have 65^3 of them and pass, four do not.
_SPAN = 64
MOST_WAYS = 3_000_000


class PatternTable(Generic[T]):
    """Values by pattern, looked up as PEFT does: the first key that matches wins."""

    def __init__(self, patterns: Mapping[str, T], *, field: str) -> None:
        """Compile `patterns`; InputError names `field` and the key that cannot be used."""
        check_keys(patterns, field=field)
        self._field = field
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
        if self._expressions and len(module) > LONGEST_PATH:
            message = f"a path of {len(module)} characters; at most {LONGEST_PATH} are matched"
            raise InputError(message, code=Code.PATTERN_UNSAFE, field=self._field)
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


def check_keys(keys: Iterable[str], *, field: str) -> None:
    """Refuse a table of patterns that are too many, or one of which `check_expression` refuses.

    ResourceError for more than 100 000 keys, or 1000 that are more than a plain path.
    """
    names = list(keys)
    # Compared with every module, unlike plain paths, which are looked up.
    expressions = [key for key in names if not _PLAIN.fullmatch(key)]
    for count, most in ((len(names), MOST_PATTERNS), (len(expressions), MOST_EXPRESSIONS)):
        if count > most:
            kind = "patterns" if most == MOST_PATTERNS else "regular expressions"
            message = f"{count} {kind}; at most {most} are read"
            hint = "name the modules plainly"
            raise ResourceError(message, code=Code.LIMIT_EXCEEDED, field=field, hint=hint)
    for key in expressions:
        _compiled(key, field)


def _compiled(key: str, field: str) -> re.Pattern[str]:
    where = f"{field}[{key!r}]" if len(key) <= LONGEST_PATTERN else field
    check_expression(key, field=where)
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        # Sound alone, but not inside PEFT's expression: flags belong to the start.
        raise _invalid(error, where) from None


def check_expression(expression: str, *, field: str) -> None:
    """InputError unless `expression` is a valid regular expression that runs in bounded time.

    Refused: more than 512 characters, back references, and more than three million ways to match 64
    characters, as repeats inside repeats have them, or more than three unbounded repeats.
    """
    if len(expression) > LONGEST_PATTERN:
        message = f"pattern of {len(expression)} characters; at most {LONGEST_PATTERN} are read"
        raise InputError(message, code=Code.PATTERN_UNSAFE, field=field)
    if _PLAIN.fullmatch(expression):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways = _ways(_parser.parse(expression))
    except (re.error, RecursionError, OverflowError) as error:
        raise _invalid(error, field) from None
    if ways > MOST_WAYS:
        message = "this regular expression can take exponential time"
        hint = "name the modules plainly, without nested repeats or back references"
        raise InputError(message, code=Code.PATTERN_UNSAFE, field=field, hint=hint)


def _invalid(error: Exception, field: str) -> InputError:
    message = f"not a valid regular expression: {error}"
    return InputError(message, code=Code.PATTERN_INVALID, field=field)


def _ways(parsed: Any) -> int:  # noqa: ANN401 - re's own tree
    """At most how many ways there are to match up to 64 characters; capped above MOST_WAYS."""
    total = 1
    for op, argument in parsed:
        total = min(total * _ways_of(op, argument), MOST_WAYS + 1)
    return total


def _ways_of(op: Any, argument: Any) -> int:  # noqa: ANN401 - re's own tree
    if op in _REPEATS:
        least, most, child = argument
        most = min(most, _SPAN)
        # Every count of repeats that may be tried, each with all the ways of its parts.
        counts = most - min(least, most) + 1
        ways = _ways(child)
        return counts * ways**most if ways <= MOST_WAYS else ways
    if op is _constants.SUBPATTERN:
        return _ways(argument[3])
    if op is _constants.BRANCH:
        return _ways_of_branch(argument[1])
    if op in (_constants.ASSERT, _constants.ASSERT_NOT):
        return _ways(argument[1])
    if op is _constants.ATOMIC_GROUP:
        return _ways(argument)
    refers = op in (_constants.GROUPREF, _constants.GROUPREF_EXISTS)
    return MOST_WAYS + 1 if refers else 1


def _ways_of_branch(alternatives: Any) -> int:  # noqa: ANN401 - re's own tree
    """Alternatives that begin with different characters exclude each other."""
    ways = [_ways(alternative) for alternative in alternatives]
    first = [alternative[0] if len(alternative) else None for alternative in alternatives]
    literal = all(item is not None and item[0] is _constants.LITERAL for item in first)
    exclusive = literal and len({item[1] for item in first if item}) == len(first)
    return max(ways) if exclusive else sum(ways)
