"""The model card: front matter as the Hub reads it, text for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.store.addresses import on_the_hub
from adaptool.store.model_card import CARD_FILE, FRONT
from adaptool.store.safe_names import printable

Value = str | Sequence[str]

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
# What the client's own reading of metadata ends in, where they are not what it expects.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off"})


@dataclass(frozen=True, slots=True)
class Table:
    """A part of a card: a title, the names of its columns, and rows of them."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says of an artifact: front matter by key, and tables; empty ones are left out."""

    front: Mapping[str, Value]
    title: str
    tables: Sequence[Table]


def completed(text: str | None, facts: Facts, file: str = CARD_FILE) -> str:
    """`text` with the keys that its front matter lacks; a card of its own where there is none.

    `file` is what errors call it. Nothing that stands there is changed. InputError (exit 3) for
    front matter that the Hub would refuse: no YAML, or a base model that is a path of some machine.
    """
    if text is None:
        return f"---\n{_yaml(facts.front)}---\n\n{_body(facts)}"
    match = FRONT.match(text)
    if match is None:
        return f"---\n{_yaml(facts.front)}---\n\n{text}"
    there = _parsed(match[0], file)
    _check_base(there.get("base_model"), file)
    lacking = {key: value for key, value in facts.front.items() if key not in there}
    if "base_model" not in {*there, *facts.front}:
        lacking.pop("base_model_relation", None)
    end = match.end("front")
    return text[:end] + _yaml(lacking) + text[end:]


def _parsed(front: str, file: str) -> dict[str, object]:
    import yaml
    from huggingface_hub import ModelCard

    try:
        known = vars(ModelCard(front).data)
        return {key: value for key, value in known.items() if value is not None}
    except (yaml.YAMLError, *_UNREADABLE) as error:
        message, hint = "its front matter cannot be read", "it must be a YAML mapping between ---"
        raise InputError(message, code=Code.FIELD_VALUE, file=file, hint=hint) from error


def _check_base(base: object, file: str) -> None:
    bases = base if isinstance(base, list) else [base] if base is not None else []
    for each in bases:
        if not isinstance(each, str) or not on_the_hub(each):
            message = f"{printable(str(each), most=100)!r} is no name on the Hub"
            raise InputError(
                message,
                code=Code.BASE_REFERENCE_UNSAFE,
                file=file,
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
    parts = [f"# {_cell(facts.title)}\n", *(_table(each) for each in facts.tables if each.rows)]
    return "\n".join(parts)


def _table(table: Table) -> str:
    title = f"## {_cell(table.title)}\n\n" if table.title else ""
    rows = [table.heads, ["---"] * len(table.heads), *([*map(_cell, row)] for row in table.rows)]
    return title + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    return re.sub(r"([|\\`*_<>\[\]#])", r"\\\1", printable(text, most=200))
