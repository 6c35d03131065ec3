"""Checks a recipe as a whole, before its first step runs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptool.errors import AdaptoolError, InputError, UsageError, gathered
from adaptool.findings import Code
from adaptool.recipes.document import Node, Scalar
from adaptool.recipes.place import Place, line_of
from adaptool.recipes.recipe import Recipe, Step
from adaptool.recipes.values import paths_in, plain_value, value_of
from adaptool.recipes.variables import Variables
from adaptool.recipes.words import Option, Verb
from adaptool.store.addresses import is_address
from adaptool.store.safe_names import printable

Judge = Callable[[Mapping[str, Any]], object]
"""Raises the UsageError of values, by parameter, that contradict each other."""


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step whose values are known; paths and addresses as they stood in the recipe."""

    name: str
    verb: Verb
    values: Mapping[str, Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    place: Place

    @property
    def makes(self) -> tuple[str, ...]:
        """What it writes on this machine."""
        return tuple(path for path in self.writes if not is_address(path))

    @property
    def lands(self) -> tuple[str, ...]:
        """What is another one when the step is done; a pull request changes no branch."""
        return () if self.values.get("create_pr") else self.writes

    @property
    def options(self) -> Mapping[str, Any]:
        """What was asked for, by word, as JSON has it."""
        return {
            option.word: plain_value(self.values[option.parameter])
            for option in self.verb.options.values()
            if option.parameter in self.values
        }


def ready_steps(
    recipe: Recipe, verbs: Mapping[str, Verb], judges: Mapping[str, Judge], variables: Variables
) -> tuple[ReadyStep, ...]:
    """The steps of `recipe`, in their order; the errors of all of them together.

    Looks at the disk only to see whether inputs exist that no step makes.
    """
    errors: list[AdaptoolError] = []
    ready: list[ReadyStep] = []
    for step in recipe.steps:
        verb = verbs.get(step.verb)
        if verb is None:
            errors.append(_unknown(step.verb, verbs, step.place, "verb", Code.VERB_UNKNOWN))
            continue
        reading = _Reading(step, verb, variables, errors)
        done = reading.ready(judges.get(step.verb))
        ready.append(done)
        made = {f"steps.{step.name}.{word}": path for word, path in reading.outputs(done)}
        variables = replace(variables, made={**variables.made, **made})
    errors.extend(_order_errors(ready))
    if errors:
        raise gathered(sorted(errors, key=line_of))
    return tuple(ready)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads the values of one step, and keeps what is wrong with them."""

    step: Step
    verb: Verb
    variables: Variables
    errors: list[AdaptoolError]

    def ready(self, judge: Judge | None) -> ReadyStep:
        before = len(self.errors)
        values: dict[str, Any] = {}
        for word, node in self.step.options.items():
            option = self.verb.options.get(word)
            place = self.step.place.at(node.line, printable(word, most=80))
            if option is None:
                known, where = self.verb.options, self.step.place.at(node.line)
                self.errors.append(_unknown(word, known, where, "option", Code.FIELD_UNKNOWN))
                continue
            try:
                values[option.parameter] = self._value(option, node, place)
            except AdaptoolError as error:
                self.errors.append(error)
        self._check_required()
        if judge is not None and len(self.errors) == before:
            self._judge(judge, values)
        reads, writes = self._paths(values)
        return ReadyStep(self.step.name, self.verb, values, reads, writes, self.step.place)

    def outputs(self, done: ReadyStep) -> list[tuple[str, str]]:
        """Word and path of everything that the step writes."""
        return [
            (option.word, paths_in(done.values[option.parameter])[0])
            for option in self.verb.options.values()
            if option.written and option.parameter in done.values
        ]

    def _value(self, option: Option, node: Node, place: Place) -> Any:  # noqa: ANN401 - any option's
        value = value_of(option, node, self.variables, place)
        if option.written and isinstance(node, Scalar):
            refuse_outside(paths_in(value)[0], node.text, self.variables, place)
        return value

    def _check_required(self) -> None:
        for word, option in self.verb.options.items():
            if option.required and word not in self.step.options:
                place = self.step.place.at(self.step.place.line, word)
                self.errors.append(place.refusal("is missing", code=Code.FIELD_MISSING))

    def _judge(self, judge: Judge, values: Mapping[str, Any]) -> None:
        try:
            judge(values)
        except AdaptoolError as error:
            word = (error.field or "").lstrip("-")
            place = self.step.place.at(self.step.place.line, word)
            message = f"{error.file}: {error.message}" if error.file else error.message
            told = place.refusal(message, code=error.code, hint=error.hint, kind=UsageError)
            self.errors.append(told)

    def _paths(self, values: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is read and what is written; `uri` is written where nothing else is."""
        reads: list[str] = []
        writes: list[str] = []
        sends = "out" not in self.verb.options
        for option in self.verb.options.values():
            value = values.get(option.parameter)
            if option.parameter == "uri" and isinstance(value, str):
                (writes if sends else reads).extend([value] if is_address(value) else [])
            else:
                (writes if option.written else reads).extend(paths_in(value))
        return tuple(reads), tuple(writes)


def refuse_outside(path: str, written: str, variables: Variables, place: Place) -> None:
    """InputError where an output would lie outside the current directory unasked.

    `written` is the text in the recipe: where it begins with a variable from outside, whoever
    starts the recipe has chosen the place.
    """
    if is_address(path) or variables.from_outside(written):
        return
    if Path(path).is_absolute() or Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        message = f"{printable(path, most=200)} lies outside the current directory"
        hint = "begin it with a variable that --set gives, or write inside"
        raise place.refusal(message, code=Code.OUTPUT_OUTSIDE, hint=hint)


def refuse_within(state: str, steps: Sequence[ReadyStep], file: str) -> None:
    """InputError where the file for the state would lie in what a step writes."""
    for step in steps:
        if any(_is_within(state, written) for written in step.writes):
            message = f"{printable(state, most=200)} lies in what step {step.name} writes"
            raise InputError(message, code=Code.STEP_ORDER, file=file, field="state")


def _unknown(
    word: str, known: Mapping[str, object], place: Place, what: str, code: Code
) -> AdaptoolError:
    near = difflib.get_close_matches(word.replace("_", "-"), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    message = f"{printable(word, most=80)!r} is no {what}"
    return place.refusal(message, code=code, hint=hint)


def _order_errors(steps: Sequence[ReadyStep]) -> list[AdaptoolError]:
    """What is read before it is made, written twice, or nowhere to be found."""
    return [
        error
        for number, step in enumerate(steps)
        for error in (
            *(_read_error(path, step, steps, number) for path in step.reads),
            *(_write_error(path, step, steps[:number]) for path in step.writes),
        )
        if error is not None
    ]


def _read_error(
    path: str, step: ReadyStep, steps: Sequence[ReadyStep], number: int
) -> AdaptoolError | None:
    for later in steps[number:]:
        if any(_is_within(path, written) for written in later.lands):
            which = "this step itself" if later is step else f"step {later.name}, which comes later"
            message = f"{printable(path, most=200)} is made by {which}"
            return step.place.refusal(message, code=Code.STEP_ORDER)
    made = any(_is_within(path, written) for each in steps[:number] for written in each.writes)
    if made or is_address(path) or os.path.lexists(path):
        return None
    message = f"{printable(path, most=200)} does not exist, and no earlier step makes it"
    hint = f"paths are relative to the current directory, {printable(str(Path.cwd()), most=200)}"
    return step.place.refusal(message, code=Code.NOT_FOUND, hint=hint, kind=UsageError)


def _write_error(path: str, step: ReadyStep, earlier: Sequence[ReadyStep]) -> AdaptoolError | None:
    for other in earlier:
        for written in other.writes:
            if _is_within(path, written) or _is_within(written, path):
                message = f"{printable(path, most=200)} is what step {other.name} writes, too"
                hint = "give each step an output of its own"
                return step.place.refusal(message, code=Code.STEP_ORDER, hint=hint)
    return None


def _is_within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it, as far as their names say."""
    if is_address(path) or is_address(folder):
        return path == folder
    here, there = (os.path.normpath(Path.cwd() / each) for each in (path, folder))
    return here == there or here.startswith(there.rstrip(os.sep) + os.sep)
