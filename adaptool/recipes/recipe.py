"""A recipe as it is written: its variables and its steps, before any value is put in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from adaptool.errors import AdaptoolError, gathered
from adaptool.findings import Code
from adaptool.recipes.document import Mapped, Node, Scalar
from adaptool.recipes.place import Place, line_of
from adaptool.store.safe_names import printable

SCHEMA = 1
MOST_STEPS = 1000
KEYS = ("schema", "variables", "state", "steps")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a verb and its options by their words; `place` is where it begins."""

    name: str
    verb: str
    options: Mapping[str, Node]
    place: Place


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose shape is right.

    `variables` maps each declared name to its default, None where it must be given. `state` is
    the file for what was done, None where it stands beside the recipe.
    """

    file: str
    variables: Mapping[str, str | None]
    state: Scalar | None
    steps: tuple[Step, ...]


def recipe_of(tree: Node, file: str) -> Recipe:
    """The recipe that `tree` is; the errors of all its parts together where it is none."""
    return _Reading(Place(file, 1)).recipe(tree)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads the parts, and keeps what is wrong with them."""

    top: Place
    errors: list[AdaptoolError] = field(default_factory=list)

    def recipe(self, tree: Node) -> Recipe:
        if not isinstance(tree, Mapped):
            raise self.top.refusal("must be a mapping with schema and steps", code=Code.FIELD_TYPE)
        for name in tree.items.keys() - set(KEYS):
            self._wrong(tree.items[name], name, f"is none of {', '.join(KEYS)}", Code.FIELD_UNKNOWN)
        self._check_schema(tree)
        recipe = Recipe(
            self.top.recipe,
            self._variables(tree.items.get("variables")),
            self._state(tree.items.get("state")),
            self._steps(tree),
        )
        if self.errors:
            raise gathered(sorted(self.errors, key=line_of))
        return recipe

    def _wrong(self, node: Node, name: str, message: str, code: Code = Code.FIELD_TYPE) -> None:
        place = self.top.at(node.line, printable(name, most=100))
        self.errors.append(place.refusal(message, code=code))

    def _check_schema(self, tree: Mapped) -> None:
        found = tree.items.get("schema")
        if found is None:
            self._wrong(tree, "schema", "is missing; write schema: 1", Code.FIELD_MISSING)
        elif not isinstance(found, Scalar) or found.text != str(SCHEMA):
            self._wrong(found, "schema", "must be 1, the only one there is", Code.FIELD_VALUE)

    def _variables(self, node: Node | None) -> Mapping[str, str | None]:
        if node is None:
            return {}
        if not isinstance(node, Mapped):
            self._wrong(node, "variables", "must map names to their defaults")
            return {}
        found: dict[str, str | None] = {}
        for name, default in node.items.items():
            if not NAME.fullmatch(name):
                self._wrong(default, f"variables.{name}", "is no name", Code.FIELD_VALUE)
            elif not isinstance(default, Scalar):
                self._wrong(default, f"variables.{name}", "must be a number or a text")
            else:
                found[name] = None if default.empty else default.text
        return found

    def _state(self, node: Node | None) -> Scalar | None:
        if node is not None and (not isinstance(node, Scalar) or node.empty):
            self._wrong(node, "state", "must be the name of a file")
            return None
        return node

    def _steps(self, tree: Mapped) -> tuple[Step, ...]:
        node = tree.items.get("steps")
        if node is None:
            self._wrong(tree, "steps", "is missing", Code.FIELD_MISSING)
            return ()
        if isinstance(node, Scalar | Mapped) or not node.items or len(node.items) > MOST_STEPS:
            self._wrong(node, "steps", f"must be a list of 1 to {MOST_STEPS} steps")
            return ()
        steps: dict[str, Step] = {}
        for number, each in enumerate(node.items, start=1):
            step = self._step(each, number, steps)
            if step is not None:
                steps[step.name] = step
        return tuple(steps.values())

    def _step(self, node: Node, number: int, earlier: Mapping[str, Step]) -> Step | None:
        where = f"steps[{number}]"
        if not isinstance(node, Mapped):
            self._wrong(node, where, "must be a mapping: a verb and its options")
            return None
        verbs = [name for name in node.items if name != "name"]
        if len(verbs) != 1:
            given = ", ".join(printable(verb, most=40) for verb in verbs) or "none"
            self._wrong(node, where, f"must hold one verb, holds {given}", Code.FIELD_VALUE)
            return None
        verb = verbs[0]
        name = self._name(node.items.get("name"), where, verb, earlier)
        options = self._options(node.items[verb], f"{where}.{verb}")
        if name is None or options is None:
            return None
        place = self.top.at(node.line, f"steps.{name}.{printable(verb, most=40)}")
        return Step(name, verb, options, place)

    def _name(
        self, node: Node | None, where: str, verb: str, earlier: Mapping[str, Step]
    ) -> str | None:
        if node is None:
            # `merge`, `merge-2`: the first name that is free.
            names = (verb, *(f"{verb}-{number}" for number in range(2, MOST_STEPS + 2)))
            return next(name for name in names if name not in earlier)
        if not isinstance(node, Scalar) or not NAME.fullmatch(node.text):
            message = "must begin with a letter and hold letters, digits, - and _ only"
            self._wrong(node, f"{where}.name", message, Code.FIELD_VALUE)
            return None
        if node.text in earlier:
            message = f"{node.text!r} is the name of an earlier step"
            self._wrong(node, f"{where}.name", message, Code.DUPLICATE_KEY)
            return None
        return node.text

    def _options(self, node: Node, where: str) -> Mapping[str, Node] | None:
        if isinstance(node, Mapped):
            return node.items
        self._wrong(node, where, "must be a mapping of options")
        return None
