"""What `${NAME}` and `${steps.NAME.out}` stand for; nothing of the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from adaptool.errors import AdaptoolError, UsageError, gathered
from adaptool.findings import Code
from adaptool.recipes.place import Place
from adaptool.recipes.recipe import Recipe
from adaptool.store.safe_names import printable

_STEPS = "steps."
# `$${` is a `${` that means itself.
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")


@dataclass(frozen=True, slots=True)
class Variables:
    """Every value that a recipe may name.

    `values` are the variables, `given` those among them that came from outside; `made` maps
    `steps.NAME.out` to where an earlier step writes.
    """

    values: Mapping[str, str]
    given: frozenset[str]
    made: Mapping[str, str]

    def put_into(self, text: str, place: Place) -> str:
        """`text` with its references replaced; InputError where one names nothing."""
        return _REFERENCE.sub(lambda found: self._value(found, place), text)

    def from_outside(self, text: str) -> bool:
        """Whether `text` begins with what was given from outside, or where a step writes."""
        found = _REFERENCE.match(text)
        name = found[1] if found else None
        return name is not None and (name in self.given or name in self.made)

    def _value(self, found: re.Match[str], place: Place) -> str:
        name = found[1]
        if name is None:
            return "${"
        known = self.made if name.startswith(_STEPS) else self.values
        if found[2] and name in known:
            return known[name]
        raise self._unknown(found, place)

    def _unknown(self, found: re.Match[str], place: Place) -> AdaptoolError:
        name = printable(found[1], most=80)
        if not found[2]:
            message, hint = f"${{{name} has no end", "write ${NAME}, or $${ for the characters"
        elif name.startswith(_STEPS):
            message = f"${{{name}}} is no output of an earlier step"
            outputs = ", ".join(f"${{{each}}}" for each in self.made)
            hint = f"there are {outputs}" if outputs else "no earlier step writes anything"
        else:
            message = f"${{{name}}} is not declared"
            hint = f"add {name} to variables; the environment is not read"
        return place.refusal(message, code=Code.VARIABLE_UNSET, hint=hint)


def variables_of(recipe: Recipe, given: Mapping[str, str]) -> Variables:
    """The recipe's variables with the values `given`; no step has made anything yet.

    UsageError (exit 2) for a name that is not declared, and for one that has no value.
    """
    errors: list[AdaptoolError] = []
    for name in given.keys() - recipe.variables.keys():
        declared = ", ".join(recipe.variables) or "none"
        message = f"{printable(name, most=80)} is no variable of it; declared: {declared}"
        errors.append(_usage(recipe, message, "--set"))
    values = {**recipe.variables, **given}
    missing = [name for name, value in values.items() if value is None]
    errors.extend(_usage(recipe, "has no value", name, f"--set {name}=VALUE") for name in missing)
    if errors:
        raise gathered(errors)
    known = {name: value for name, value in values.items() if value is not None}
    return Variables(known, frozenset(given), {})


def _usage(recipe: Recipe, message: str, field: str, hint: str | None = None) -> UsageError:
    code = Code.VARIABLE_UNSET
    return UsageError(message, code=code, file=recipe.file, field=field, hint=hint)
