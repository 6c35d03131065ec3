"""The verbs of a recipe and their options, read from the signatures of the library's functions.

A new keyword of a function is an option of its verb at once, under its flag's word. What a value
may be is the keyword's annotation; a Path is an input unless its name is one of WRITTEN.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

from adaptool.findings import Finding
from adaptool.model.keywords import Kind, kind_of

WRITTEN = frozenset({"out", "html", "provenance", "bom"})
# The run decides these for all steps.
_OF_THE_RUN = frozenset({"overwrite", "dry_run"})


class Result(Protocol):
    """What every verb returns."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What there is to say of it."""
        ...

    def as_json(self) -> dict[str, Any]:
        """The object that the verb's `--json` prints."""
        ...


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a verb; `choices` are the only words it takes, where there are any."""

    word: str
    parameter: str
    kind: Kind
    several: bool
    required: bool
    choices: tuple[str, ...] = ()

    @property
    def written(self) -> bool:
        """Whether the step writes what this names."""
        return self.kind is Kind.PATH and self.parameter in WRITTEN


@dataclass(frozen=True, slots=True)
class Verb:
    """A function of the library as a recipe names it; `takes` are all its parameters."""

    name: str
    function: Callable[..., Result]
    options: Mapping[str, Option]
    takes: Mapping[str, inspect.Parameter]

    @classmethod
    def of(
        cls, name: str, function: Callable[..., Any], choices: Mapping[str, Collection[str]]
    ) -> Verb:
        """The verb that `function` is; `choices` by the names of parameters."""
        takes = inspect.signature(function).parameters
        hints = get_type_hints(function)
        first = next(iter(takes))
        found = (_option(takes[each], hints[each], choices, first=each == first) for each in takes)
        options = {option.word: option for option in found if option is not None}
        return cls(name, function, options, takes)

    def call_with(self, given: Mapping[str, Any], values: Mapping[str, Any]) -> Result:
        """As `call`, with those of `given` that the function takes and `values` do not say."""
        return self.call({**{name: given[name] for name in given if name in self.takes}, **values})

    def call(self, values: Mapping[str, Any]) -> Result:
        """What the function returns for `values`, by parameter."""
        variadic = any(each.kind is each.VAR_POSITIONAL for each in self.takes.values())
        positional: list[Any] = []
        for name, parameter in self.takes.items() if variadic else ():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(values.get(name, ()))
            elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name in values:
                positional.append(values[name])
        keywords = {
            name: values[name]
            for name, parameter in self.takes.items()
            if name in values and (not variadic or parameter.kind is parameter.KEYWORD_ONLY)
        }
        return self.function(*positional, **keywords)


def _option(
    parameter: inspect.Parameter,
    hint: object,
    choices: Mapping[str, Collection[str]],
    *,
    first: bool,
) -> Option | None:
    """The option that sets `parameter`; None where no recipe can say what it takes."""
    name = parameter.name
    kind, several = kind_of(name, hint)
    if kind is None or name in _OF_THE_RUN:
        return None
    variadic = parameter.kind is parameter.VAR_POSITIONAL
    # Where the result goes is named in a recipe, so that later steps can name it.
    required = name == "out" or (first if variadic else parameter.default is parameter.empty)
    return Option(
        name.strip("_").replace("_", "-"),
        name,
        kind,
        several or variadic,
        required,
        tuple(choices.get(name, ())) if kind is Kind.TEXT else (),
    )
