"""What a recipe has done before: the file that lets a rerun skip what is unchanged.

No clock and no absolute path of our own stands in it. Losing it loses no work: outputs are then
in the way (exit 5) until --overwrite is given or they are removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.store.documents import encode_json, read_json_object
from adaptool.store.safe_names import printable

SCHEMA = 1
MOST_REMEMBERED = 500
BEGUN = "begun"
"""In place of a digest: a step was about to write this when the state was saved."""
_LARGEST = 64 * 1024 * 1024
_MARK = "recipe_state"
_FIELDS: Mapping[str, type] = {
    "step": str,
    "verb": str,
    "version": str,
    "options": dict,
    "inputs": dict,
    "outputs": dict,
    "result": dict,
}


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was done: what was asked, what it read and wrote, and what it answered.

    `inputs` and `outputs` map paths and addresses to digests; `version` is adaptool's.
    """

    step: str
    verb: str
    version: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    result: Mapping[str, Any]

    def same_work(self, other: Done) -> bool:
        """Whether both are the same verb on the same inputs, with the same options."""
        return self._work() == other._work()

    def _work(self) -> tuple[object, ...]:
        return (self.verb, self.version, self.options, self.inputs)

    def as_json(self) -> dict[str, Any]:
        """One entry of `steps`."""
        return {name: getattr(self, name) for name in _FIELDS}


@dataclass(frozen=True, slots=True)
class State:
    """The steps that were done, the latest last."""

    done: tuple[Done, ...] = ()

    def find(self, work: Done) -> Done | None:
        """The latest entry for the same work, None where there is none."""
        return next((each for each in reversed(self.done) if each.same_work(work)), None)

    def made(self, path: str) -> str | None:
        """The digest of what a step last wrote at `path`, None where none did."""
        return next((each.outputs[path] for each in self.done if path in each.outputs), None)

    def having(self, new: Done) -> State:
        """With `new`, in place of whatever else wrote where it wrote, or did the same work."""
        kept = (each for each in self.done if not _replaced(each, new))
        return State((*kept, new)[-MOST_REMEMBERED:])

    def encoded(self) -> bytes:
        """The file's bytes."""
        steps = [each.as_json() for each in self.done]
        return encode_json({_MARK: SCHEMA, "steps": steps}, nonfinite=True)


def read_state(path: Path) -> State:
    """What stands in the file at `path`, nothing where there is none.

    InputError (exit 3) for any other file, so that none is written over.
    """
    if not path.exists():
        return State()
    body = read_json_object(path, limit_bytes=_LARGEST, what="state of a recipe", nonfinite=True)
    steps = body.get("steps")
    if body.get(_MARK) != SCHEMA or not isinstance(steps, list) or not all(map(_is_entry, steps)):
        message = "is no state of a recipe that this version knows"
        hint = "remove it to begin anew, or name another file under state"
        file = printable(str(path))
        raise InputError(message, code=Code.RECEIPT_INVALID, file=file, hint=hint)
    return State(tuple(Done(**{name: step[name] for name in _FIELDS}) for step in steps))


def _is_entry(step: object) -> bool:
    return isinstance(step, dict) and all(
        isinstance(step.get(name), kind) for name, kind in _FIELDS.items()
    )


def _replaced(old: Done, new: Done) -> bool:
    return bool(old.outputs.keys() & new.outputs.keys()) or old.same_work(new)
