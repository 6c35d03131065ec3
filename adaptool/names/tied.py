"""Which parameters of a model share one tensor, from its config.json alone.

`ties.json` is generated from transformers: for every model class the parameters that it ties, the
config whose `tie_word_embeddings` decides, and what that flag is where a config.json says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

FLAG = "tie_word_embeddings"
_SAID = (None, True, False)


@dataclass(frozen=True, slots=True)
class Tie:
    """Module parameters that may be one: `names`, the one that the others copy first.

    `flag` is what transformers reads from the config, `said` whether the config says it.
    """

    names: tuple[str, ...]
    flag: bool
    said: bool


@dataclass(frozen=True, slots=True)
class Family:
    """What transformers ties in the models that a config may be of.

    `patterns`: expressions for names that are tied layer by layer. `kept`: config keys that follow
    the flag where they are not said, with their values of a tied model. `parts`: whether the model
    computes the same with the flag turned off and every name written.
    """

    ties: tuple[Tie, ...] = ()
    patterns: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    parts: bool = True


def family_of(config: Mapping[str, Any] | None) -> Family | None:
    """The ties of the model's class, or of every class of its type; None: transformers has none."""
    table, config = _table(), config or {}
    entry = table["types"].get(config.get("model_type"))
    if entry is None:
        return None
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    classes = [architecture] if architecture in entry["classes"] else entry["classes"]
    known = [table["classes"][name] for name in classes if name in table["classes"]]
    ties = [tuple(tie) for body in known for tie in body["ties"]]
    return Family(
        ties=tuple(_joined(ties, entry["flags"], config)) if ties else (),
        patterns=tuple(sorted({name for body in known for name in body.get("patterns", ())})),
        kept=entry.get("kept", {}),
        parts=not entry.get("scaled"),
    )


def heads(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Parameters that are copies of another one where the model is tied."""
    family = family_of(config)
    return tuple(name for tie in family.ties for name in tie.names[1:]) if family else ()


def _joined(
    ties: Sequence[tuple[str, str, list[str]]], flags: Mapping[str, str], config: Mapping[str, Any]
) -> Iterator[Tie]:
    """One tie per source: several classes, or a model and its part, may name the same one."""
    by_source: dict[str, tuple[dict[str, None], list[tuple[bool, bool]]]] = {}
    for path, source, targets in ties:
        names, said = by_source.setdefault(source, ({}, []))
        names.update(dict.fromkeys(targets))
        said.append(_flag(flags[path], config, path))
    for source, (names, said) in by_source.items():
        yield Tie((source, *names), any(flag for flag, _ in said), any(told for _, told in said))


def _flag(letters: str, config: Mapping[str, Any], path: str) -> tuple[bool, bool]:
    """What transformers takes the flag for, and whether the config says it."""
    own = _said(config, path)
    text = _said(config, "text_config") if path == "" else None
    place = _SAID.index(own)
    letter = letters[3 * place + _SAID.index(text)] if path == "" else letters[place]
    return letter == "T", own is not None or text is not None


def _said(config: Mapping[str, Any], path: str) -> bool | None:
    place: object = config
    for key in filter(None, path.split(".")):
        place = place.get(key) if isinstance(place, Mapping) else None
    found = place.get(FLAG) if isinstance(place, Mapping) else None
    return found if isinstance(found, bool) else None


@cache
def _table() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("ties.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found
