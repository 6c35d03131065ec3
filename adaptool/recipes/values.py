"""A value of a recipe, read as what its option takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptool.findings import Code
from adaptool.model.byte_sizes import bytes_of
from adaptool.model.keywords import Kind
from adaptool.model.options import Strength
from adaptool.recipes.document import Listed, Mapped, Node, Scalar
from adaptool.recipes.place import Place
from adaptool.recipes.variables import Variables
from adaptool.recipes.words import Option
from adaptool.store.addresses import as_written, is_address
from adaptool.store.safe_names import printable

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_FLAGS = {"true": True, "false": False}


def value_of(option: Option, node: Node, variables: Variables, place: Place) -> Any:  # noqa: ANN401
    """The value of `option` that stands in `node`; InputError where it cannot be one."""
    if not option.several:
        return _single(option, node, variables, place)
    if not isinstance(node, Listed):
        raise place.refusal("must be a list", code=Code.FIELD_TYPE, hint="[FIRST, SECOND]")
    if option.required and not node.items:
        raise place.refusal("is empty")
    return tuple(_single(option, item, variables, place.at(item.line)) for item in node.items)


def plain_value(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """A value of an option as JSON has it."""
    if isinstance(value, Path):
        return as_written(value)
    if isinstance(value, Strength):
        return {"adapter": as_written(value.path), "weight": value.weight}
    if isinstance(value, tuple):
        return [plain_value(each) for each in value]
    return value


def paths_in(value: object) -> tuple[str, ...]:
    """The paths and addresses that a value names."""
    if isinstance(value, Path):
        return (as_written(value),)
    if isinstance(value, Strength):
        return (as_written(value.path),)
    several = value if isinstance(value, tuple) else ()
    return tuple(path for each in several for path in paths_in(each))


def _single(option: Option, node: Node, variables: Variables, place: Place) -> Any:  # noqa: ANN401
    if option.kind is Kind.STRENGTH and isinstance(node, Mapped):
        return _weighed(node, variables, place)
    if not isinstance(node, Scalar):
        raise place.refusal("must be one value", code=Code.FIELD_TYPE)
    if node.empty:
        raise place.refusal("has no value", code=Code.FIELD_MISSING, hint="leave it out, or set it")
    text = variables.put_into(node.text, place)
    found = _READERS[option.kind](text, place)
    if option.choices and text not in option.choices:
        message = f"{printable(text, most=80)!r} is none of {', '.join(option.choices)}"
        raise place.refusal(message)
    return found


def _weighed(node: Mapped, variables: Variables, place: Place) -> Path | Strength:
    """`{adapter: PATH, weight: W}`."""
    unknown = node.items.keys() - {"adapter", "weight"}
    if unknown or "adapter" not in node.items:
        message = "must hold adapter, and weight where it is not 1"
        raise place.refusal(message, code=Code.FIELD_UNKNOWN if unknown else Code.FIELD_MISSING)
    path: Path = _single(_ADAPTER, node.items["adapter"], variables, place)
    weight = node.items.get("weight")
    if weight is None:
        return path
    return Strength(path, _single(_WEIGHT, weight, variables, place))


def _text(text: str, place: Place) -> str:
    del place
    return text


def _path(text: str, place: Place) -> Path:
    if not text or "\0" in text or (_SCHEME.match(text) and not is_address(text)):
        message = f"{printable(text, most=80)!r} is neither a path nor hf://OWNER/NAME"
        raise place.refusal(message)
    return Path(text)


def _whole(text: str, place: Place) -> int:
    if not _WHOLE.fullmatch(text):
        raise place.refusal(f"{_shown(text)} is no whole number", code=Code.FIELD_TYPE)
    return int(text)


def _number(text: str, place: Place) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise place.refusal(f"{_shown(text)} is no finite number", code=Code.FIELD_TYPE)
    return float(text)


def _flag(text: str, place: Place) -> bool:
    if text not in _FLAGS:
        raise place.refusal(f"{_shown(text)} is neither true nor false", code=Code.FIELD_TYPE)
    return _FLAGS[text]


def _size(text: str, place: Place) -> int | None:
    if text == "keep":
        return None
    size = bytes_of(text)
    if not size:
        message = f"{_shown(text)} is no size; write it as 5GB, 500MB or 2GiB"
        raise place.refusal(message, code=Code.FIELD_TYPE)
    return size


def _strength(text: str, place: Place) -> Path | Strength:
    """`PATH` or `PATH=W`; a folder whose name ends in `=2` is written as a mapping.

    Without a weight it is the verb's to say which: 1, or that of a receipt.
    """
    left, equals, right = text.rpartition("=")
    if equals and _NUMBER.fullmatch(right):
        return Strength(_path(left, place), _number(right, place))
    return _path(text, place)


def _shown(text: str) -> str:
    return repr(printable(text, most=80))


_READERS: Mapping[Kind, Callable[[str, Place], Any]] = {
    Kind.TEXT: _text,
    Kind.PATH: _path,
    Kind.WHOLE: _whole,
    Kind.NUMBER: _number,
    Kind.FLAG: _flag,
    Kind.SIZE: _size,
    Kind.STRENGTH: _strength,
}
_ADAPTER = Option("adapter", "adapter", Kind.PATH, several=False, required=True)
_WEIGHT = Option("weight", "weight", Kind.NUMBER, several=False, required=False)
