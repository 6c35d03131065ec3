"""The JSON schema of recipes, made of the verbs, for editors and for whoever writes recipes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from adaptool.model.keywords import Kind
from adaptool.recipes.recipe import MOST_STEPS, NAME, SCHEMA
from adaptool.recipes.words import Option, Verb
from adaptool.store.documents import encode_json

SCHEMA_FILE = "recipe.schema.json"
_REFERENCE = {"$ref": "#/$defs/reference"}
_NAME = f"^(?:{NAME.pattern})$"
_PLAIN: Mapping[Kind, Mapping[str, Any]] = {
    Kind.TEXT: {"type": "string"},
    Kind.PATH: {"type": "string", "minLength": 1},
    Kind.WHOLE: {"type": "integer"},
    Kind.NUMBER: {"type": "number"},
    Kind.FLAG: {"type": "boolean"},
    Kind.SIZE: {"type": ["integer", "string"]},
    Kind.STRENGTH: {"$ref": "#/$defs/strength"},
}


def shipped_schema() -> str:
    """The schema in the package."""
    return (resources.files("adaptool.recipes") / SCHEMA_FILE).read_text(encoding="utf-8")


def schema_text(verbs: Mapping[str, Verb]) -> str:
    """The schema of recipes with these verbs: JSON Schema 2020-12, the same text every time."""
    return encode_json(_schema(verbs)).decode()


def _schema(verbs: Mapping[str, Verb]) -> Mapping[str, Any]:
    steps = {name: _verb(verb) for name, verb in verbs.items()}
    step = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": _NAME}, **steps},
        "additionalProperties": False,
        "oneOf": [{"required": [name]} for name in sorted(verbs)],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of adaptool",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "state": {"type": "string", "minLength": 1},
            "variables": {
                "type": "object",
                "propertyNames": {"pattern": _NAME},
                "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
            },
            "steps": {"type": "array", "minItems": 1, "maxItems": MOST_STEPS, "items": step},
        },
        "required": ["schema", "steps"],
        "additionalProperties": False,
        "$defs": {"reference": {"type": "string", "pattern": r"\$\{"}, "strength": _strength()},
    }


def _strength() -> Mapping[str, Any]:
    """`PATH`, `PATH=W`, or both by name."""
    named = {
        "type": "object",
        "properties": {"adapter": {"type": "string"}, "weight": _or_reference({"type": "number"})},
        "required": ["adapter"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "string", "minLength": 1}, named]}


def _verb(verb: Verb) -> Mapping[str, Any]:
    options = verb.options.values()
    return {
        "type": "object",
        "properties": {option.word: _option(option) for option in options},
        "required": sorted(option.word for option in options if option.required),
        "additionalProperties": False,
    }


def _option(option: Option) -> Mapping[str, Any]:
    single: Mapping[str, Any] = _PLAIN[option.kind]
    if option.choices:
        single = {"enum": list(option.choices)}
    if option.choices or option.kind in {Kind.WHOLE, Kind.NUMBER, Kind.FLAG}:
        single = _or_reference(single)
    if not option.several:
        return single
    several = {"type": "array", "items": single}
    return {**several, "minItems": 1} if option.required else several


def _or_reference(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """A value, or a text that names variables, which is read when they are known."""
    return {"anyOf": [plain, _REFERENCE]}
