"""Every keyword of every verb refuses what it does not take, or reads it as what it means."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adaptool
from adaptool import Strength, UsageError
from adaptool.model.keywords import keywords_of

VERBS: dict[str, Callable[..., Any]] = {
    name: getattr(adaptool, name) for name in adaptool.__all__ if name.islower() and name[0] != "_"
}
VARIADIC = inspect.Parameter.VAR_POSITIONAL
SIZES = {"max_shard_size", "max_bytes", "budget"}
NO_PATH = [3, 2.5, True, b"x", ["x"], {"x": 1}, "", "x\0y"]
NO_WHOLE = [2.7, 8.0, True, "8", b"8", [8], math.nan, 1j]
NO_NUMBER = [True, "0.5", b"1", [0.5], math.nan, math.inf, -math.inf, 1j, 10**400]
# What does not fit an annotation, as it is written in a signature, whatever else stands there.
WRONG: dict[str, list[object]] = {
    "Path | str": NO_PATH,
    "str": [3, b"x", ["x"], Path("x")],
    "int": NO_WHOLE,
    "float": NO_NUMBER,
    "bool": ["no", "true", 0, 1, [], b""],
    "Sequence[str]": [3, b"x", [3], ["x", None], {"x": 1}, {"x"}],
    "Sequence[float]": ["0.5", ["0.5"], {0.5}, [math.nan], [True]],
    "Sequence[Path | str | Strength]": [3, b"x", [3], [""], {"x": 1}, [None]],
    "Mapping[str, object]": ["x", 3, ["x"]],
    "Progress": ["x", 3],
    "Watch": ["x", 3],
    "Disk": ["x", 3],
}


def _taken(parameter: inspect.Parameter) -> tuple[list[object], bool]:
    """The wrong values of a parameter, and whether None is one of them."""
    written = parameter.annotation
    plain = written.removesuffix(" | None")
    wrong = list(WRONG[plain])
    if parameter.name in SIZES:
        wrong = [value for value in wrong if value != "8"] + ["five", "5 apples", 0, -1]
    if parameter.kind is VARIADIC:
        return wrong, True
    return wrong, plain == written


def _call(function: Callable[..., Any], name: str, value: object) -> None:
    """Call the verb with `value` for one parameter and text for those that it needs."""
    positional: list[object] = []
    keywords: dict[str, object] = {}
    for each, parameter in inspect.signature(function).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not VARIADIC
        if each != name and not needed:
            continue
        given = value if each == name else "nowhere"
        if parameter.kind is parameter.KEYWORD_ONLY:
            keywords[each] = given
        else:
            positional.append(given)
    function(*positional, **keywords)


def _refused(function: Callable[..., Any], name: str, value: object) -> bool:
    """Whether the value is a UsageError that names the option."""
    word = name.strip("_").replace("_", "-")
    try:
        _call(function, name, value)
    except UsageError as error:
        return error.field in (f"--{word}", word.upper())
    except Exception:  # noqa: BLE001 - whatever else it is, it is wrong
        return False
    return False


@pytest.mark.parametrize("verb", VERBS)
def test_a_value_of_another_type_is_a_usage_error_that_names_the_option(verb: str) -> None:
    """Before anything is read: text is no number, a fraction no rank, a number no path."""
    accepted = []
    for name, parameter in inspect.signature(VERBS[verb]).parameters.items():
        wrong, none = _taken(parameter)
        values = [*wrong, None] if none else wrong
        accepted += [(name, each) for each in values if not _refused(VERBS[verb], name, each)]
    assert accepted == []


MEANT: dict[str, list[tuple[object, object]]] = {
    "Sequence[str]": [("*.x", ("*.x",)), (["a", "b"], ("a", "b"))],
    "Sequence[float]": [(0.5, (0.5,)), (np.float32(0.5), (0.5,)), (np.array([1, 2]), (1.0, 2.0))],
    "Sequence[Path | str | Strength]": [
        ("a=b", ("a=b",)),
        (Path("x"), (Path("x"),)),
        (Strength(Path("x"), 2), (Strength(Path("x"), 2.0),)),
    ],
    "int": [(np.int64(8), 8)],
    "float": [(1, 1.0), (np.float16(0.5), 0.5)],
}


def test_a_single_value_is_a_list_of_one() -> None:
    """Text that stands for several is one of them, never its characters."""
    for function in VERBS.values():
        keywords = keywords_of(inspect.unwrap(function))
        for name, parameter in inspect.signature(function).parameters.items():
            several = parameter.kind is VARIADIC
            for given, read in MEANT.get(parameter.annotation.removesuffix(" | None"), ()):
                if not several:
                    assert keywords[name].read(given) == read, (function.__name__, name)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_size_may_be_text(name: str) -> None:
    """As on the command line; `keep` is what is there."""
    found = [
        keywords_of(inspect.unwrap(each))[name]
        for each in VERBS.values()
        if name in inspect.signature(each).parameters
    ]
    assert found
    for keyword in found:
        assert [keyword.read(each) for each in ("5GB", "2KiB", 7, "7", "keep", None)] == [
            *(5_000_000_000, 2048, 7, 7),
            *(None, None),
        ]


@pytest.mark.parametrize("weight", ["0.5", None, True, math.nan, [1]])
def test_a_strength_weighs_with_a_finite_number(weight: Any) -> None:
    """Nothing else is kept for later."""
    with pytest.raises(UsageError):
        Strength(Path("x"), weight)
