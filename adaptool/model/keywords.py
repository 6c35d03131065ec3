"""What a verb's keywords take, read from its signature; values read as that, whoever gives them.

    @reads_keywords
    def resize(adapter: Path | str, out: Path | str | None = None, *, rank: int | None = None):

A caller of the library may give anything. A single value where several are taken is a list of one,
a size may be text (`5GB`), and whatever else is not what the annotation says is a UsageError that
names the option: text is never taken apart into characters, 2.7 is no rank, `"no"` is not true.
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache, wraps
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.byte_sizes import bytes_of
from adaptool.model.options import Strength, is_finite
from adaptool.store.safe_names import printable

Given = ParamSpec("Given")
Result = TypeVar("Result")
KEEP = "keep"  # as a size: whatever there is


class Kind(Enum):
    """What a keyword takes; the value says so in a sentence."""

    TEXT = "text"
    PATH = "a path"
    WHOLE = "a whole number"
    NUMBER = "a finite number"
    FLAG = "True or False"
    SIZE = "a number of bytes, such as 500_000_000 or '500MB'"
    STRENGTH = "a path, or a Strength with a weight"


class _Missing(Enum):
    NOT_READ = auto()


@dataclass(frozen=True, slots=True)
class Keyword:
    """One parameter of a verb: its kind, whether it takes `several`, and whether None is a value.

    `kind` is None for what only Python can give (a callback, a disk); `members` are the types then.
    """

    parameter: str
    kind: Kind | None
    several: bool
    optional: bool
    positional: bool
    members: tuple[object, ...]

    @classmethod
    def of(cls, parameter: inspect.Parameter, hint: object) -> Keyword:
        """The keyword that `parameter` is, with its annotation resolved."""
        kind, several = kind_of(parameter.name, hint)
        several = several or parameter.kind is parameter.VAR_POSITIONAL
        positional = parameter.kind is not parameter.KEYWORD_ONLY
        optional = type(None) in _members(hint, with_none=True)
        return cls(parameter.name, kind, several, optional, positional, _members(hint))

    @property
    def option(self) -> str:
        """As the command line names it: `--max-rank`, or `OUT` for an argument."""
        word = self.parameter.strip("_").replace("_", "-")
        return word.upper() if self.positional else f"--{word}"

    def read(self, value: object) -> Any:  # noqa: ANN401 - what the annotation says
        """`value` as what the annotation says; UsageError where it is not that."""
        if value is None:
            return None if self.optional else self._refuse(value)
        if self.kind is None:
            return (
                value if any(_is(value, member) for member in self.members) else self._refuse(value)
            )
        if not self.several:
            return self._single(self.kind, value)
        if isinstance(value, str | Mapping | AbstractSet) or not isinstance(value, Iterable):
            return (self._single(self.kind, value),)
        return tuple(self._single(self.kind, each) for each in value)

    def _single(self, kind: Kind, value: object) -> Any:  # noqa: ANN401 - see `read`
        if kind is Kind.SIZE and value == KEEP and self.optional:
            return None
        found = _READERS[kind](value)
        return self._refuse(value) if found is _Missing.NOT_READ else found

    def _refuse(self, value: object) -> NoReturn:
        wanted = self.kind.value if self.kind is not None else "another type of value"
        shown = printable(f"{value!r}", most=80)
        message = f"{shown} given, must be {wanted}"
        raise UsageError(message, code=Code.USAGE, field=self.option)


def reads_keywords(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The same function, with every argument read as its annotation says before it is called."""

    @wraps(function)
    def reading(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        bound = inspect.signature(function).bind(*args, **kwargs)
        keywords = keywords_of(function)
        for name, value in bound.arguments.items():
            bound.arguments[name] = keywords[name].read(value)
        return function(*bound.args, **bound.kwargs)

    return reading


@cache
def keywords_of(function: Callable[..., object]) -> Mapping[str, Keyword]:
    """Every parameter of `function` by name, in the signature's order."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    return {name: Keyword.of(parameter, hints[name]) for name, parameter in parameters.items()}


def kind_of(name: str, hint: object) -> tuple[Kind | None, bool]:
    """What the annotation `hint` takes, and whether it takes several of them."""
    members = _members(hint)
    for member in members:
        if get_origin(member) is Sequence:
            return kind_of(name, get_args(member)[0])[0], True
    if Strength in members:
        return Kind.STRENGTH, False
    if Path in members:
        return Kind.PATH, False
    plain = {bool: Kind.FLAG, float: Kind.NUMBER, int: Kind.WHOLE, str: Kind.TEXT}
    found = next((kind for type_, kind in plain.items() if type_ in members), None)
    return (Kind.SIZE if found is Kind.WHOLE and _is_size(name) else found), False


def _is_size(name: str) -> bool:
    """Whether the number of this name is one of bytes, and may have a unit."""
    return name == "budget" or name.endswith(("_size", "_bytes"))


def _members(hint: object, *, with_none: bool = False) -> tuple[object, ...]:
    members = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return tuple(each for each in members if with_none or each is not type(None))


def _is(value: object, member: object) -> bool:
    """Whether `value` is of the type that an annotation names; a callback is whatever is called."""
    origin = get_origin(member) or member
    if origin is Callable:
        return callable(value)
    return not isinstance(origin, type) or isinstance(value, origin)


def _text(value: object) -> object:
    return value if isinstance(value, str) else _Missing.NOT_READ


def _path(value: object) -> object:
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(plain, str) or not plain or "\0" in plain:
        return _Missing.NOT_READ
    return value if isinstance(value, str | Path) else Path(plain)


def _whole(value: object) -> object:
    """An int, or what stands for one exactly (numpy's); True is none."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return _Missing.NOT_READ


def _number(value: object) -> object:
    return float(value) if is_finite(value) else _Missing.NOT_READ


def _flag(value: object) -> object:
    return value if isinstance(value, bool) else _Missing.NOT_READ


def _size(value: object) -> object:
    if isinstance(value, str):
        return bytes_of(value) or _Missing.NOT_READ
    count = _whole(value)
    return count if isinstance(count, int) and count > 0 else _Missing.NOT_READ


def _strength(value: object) -> object:
    if not isinstance(value, Strength):
        return _path(value)
    path = _path(value.path)
    if not isinstance(path, str | Path):
        return _Missing.NOT_READ
    return Strength(Path(path), float(value.weight))


_READERS: Mapping[Kind, Callable[[object], object]] = {
    Kind.TEXT: _text,
    Kind.PATH: _path,
    Kind.WHOLE: _whole,
    Kind.NUMBER: _number,
    Kind.FLAG: _flag,
    Kind.SIZE: _size,
    Kind.STRENGTH: _strength,
}
