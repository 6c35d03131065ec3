"""The model card: front matter as the Hub reads it, text for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.remote.outgoing import CARD
from adaptool.store.safe_names import printable

Value = str | Sequence[str]

_FRONT = re.compile(r"\A---[ \t]*\r?\n(?P<front>(?:.*\r?\n)*?)---[ \t]*(?:\r?\n|\Z)")
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_ON_THE_HUB = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says of an artifact: front matter by key, and rows of a table."""

    front: Mapping[str, Value]
    title: str
    rows: Sequence[tuple[str, str]]


def on_the_hub(name: str) -> bool:
    """Whether this can be the name of a repository; a trainer's local path cannot."""
    return _ON_THE_HUB.fullmatch(name) is not None and not name.startswith(".")


def completed(text: str | None, facts: Facts) -> str:
    """`text` with the keys that its front matter lacks; a card of its own where there is none.

    Nothing that stands there is changed. InputError (exit 3) for front matter that the Hub would
    refuse: no YAML, or a base model that is a path of some machine.
    """
    if text is None:
        return f"---\n{_yaml(facts.front)}---\n\n{_body(facts)}"
    match = _FRONT.match(text)
    if match is None:
        return f"---\n{_yaml(facts.front)}---\n\n{text}"
    there = _parsed(match[0])
    _check_base(there.get("base_model"))
    lacking = {key: value for key, value in facts.front.items() if key not in there}
    if "base_model" not in {*there, *facts.front}:
        lacking.pop("base_model_relation", None)
    end = match.end("front")
    return text[:end] + _yaml(lacking) + text[end:]


def _parsed(front: str) -> dict[str, object]:
    from huggingface_hub import ModelCard

    try:
        known = vars(ModelCard(front).data)
        return {key: value for key, value in known.items() if value is not None}
    except (ValueError, TypeError) as error:
        message, hint = "its front matter cannot be read", "it must be a YAML mapping between ---"
        raise InputError(message, code=Code.FIELD_VALUE, file=CARD, hint=hint) from error


def _check_base(base: object) -> None:
    bases = base if isinstance(base, list) else [base] if base is not None else []
    for each in bases:
        if not isinstance(each, str) or not on_the_hub(each):
            message = f"{printable(str(each), most=100)!r} is no name on the Hub"
            raise InputError(
                message,
                code=Code.BASE_REFERENCE_UNSAFE,
                file=CARD,
                field="base_model",
                hint="write owner/name of the base model, or remove the key",
            )


def _yaml(front: Mapping[str, Value]) -> str:
    lines = []
    for key, value in front.items():
        if isinstance(value, str):
            lines.append(f"{key}: {_scalar(value)}\n")
        elif value:
            lines.append(f"{key}:\n" + "".join(f"- {_scalar(each)}\n" for each in value))
    return "".join(lines)


def _scalar(text: str) -> str:
    """JSON's strings are YAML's."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text)


def _body(facts: Facts) -> str:
    rows = "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in facts.rows)
    return f"# {_cell(facts.title)}\n\n| | |\n|---|---|\n{rows}"


def _cell(text: str) -> str:
    return re.sub(r"([|\\`*_<>\[\]#])", r"\\\1", printable(text, most=200))
