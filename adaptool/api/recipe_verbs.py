"""The verbs as recipes name them, and what their signatures do not say of their values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from adaptool.api.adapters import convert, resize
from adaptool.api.combining import combine
from adaptool.api.comparing import diff
from adaptool.api.extracting import extract
from adaptool.api.hub import pull
from adaptool.api.merging import merge, verify
from adaptool.api.pushing import push
from adaptool.api.reading import inspect, validate
from adaptool.api.unmerging import unmerge
from adaptool.combinations import methods
from adaptool.combinations.method import Majority
from adaptool.layouts import writable
from adaptool.model.combine_options import CombineOptions, weights_for
from adaptool.model.convert_options import LORA, ConvertOptions
from adaptool.model.extract_options import ExtractOptions
from adaptool.model.options import (
    ExpertPacking,
    Machine,
    OutputDtype,
    Precision,
    QloraBase,
    Quantized,
    Tie,
)
from adaptool.model.resize_options import ResizeOptions
from adaptool.recipes.checking import Judge
from adaptool.recipes.schema import schema_text, shipped_schema
from adaptool.recipes.words import Verb
from adaptool.remote.uri import HubUri, check_local
from adaptool.runtimes import runtimes

FUNCTIONS = (
    *(pull, push, inspect, validate, convert, combine, resize, extract),
    *(merge, verify, unmerge, diff),
)
# The words of options by parameter; those that files register are asked for when they are needed.
WORDS: Mapping[str, Collection[str]] = {
    "dtype": [str(kind) for kind in OutputDtype],
    "precision": [str(kind) for kind in Precision],
    "tie": [str(kind) for kind in Tie],
    "quantized": [str(kind) for kind in Quantized],
    "qlora_base": [str(kind) for kind in QloraBase],
    "expert_packing": [str(kind) for kind in ExpertPacking],
    "majority_sign": [str(kind) for kind in Majority],
    "as_": [LORA],
}


@dataclass(frozen=True, slots=True)
class RecipeVerbs:
    """Every verb by name, and who judges its values before it runs."""

    verbs: Mapping[str, Verb]
    judges: Mapping[str, Judge]

    @classmethod
    def known(cls) -> Self:
        """Those of the library as it is, with all words that are registered."""
        registered = {
            "method": sorted(methods()),
            "to": [*sorted(writable()), LORA],
            "target": sorted(runtimes()),
        }
        return cls(_verbs({**WORDS, **registered}), _JUDGES)

    @classmethod
    def fixed(cls) -> Self:
        """Those of the library, without the words that a file may add: what the schema holds."""
        return cls(_verbs(WORDS), _JUDGES)


class RecipeSchema:
    """The JSON schema of recipes, as text. No functions: those of this room are the verbs."""

    @staticmethod
    def shipped() -> str:
        """What lies in the package."""
        return shipped_schema()

    @staticmethod
    def made() -> str:
        """What the verbs as they are make of it: a test holds that this is what is shipped."""
        return schema_text(RecipeVerbs.fixed().verbs)


def _verbs(words: Mapping[str, Collection[str]]) -> Mapping[str, Verb]:
    return {each.__name__: Verb.of(each.__name__, each, words) for each in FUNCTIONS}


def _of_machine(values: Mapping[str, Any]) -> None:
    Machine(**_picked(values, "device", "threads"))


def _of_resize(values: Mapping[str, Any]) -> None:
    ResizeOptions(**_picked(values, *(each.name for each in fields(ResizeOptions))))


def _of_extract(values: Mapping[str, Any]) -> None:
    ExtractOptions(values.get("rank"), values.get("energy"))


def _of_combine(values: Mapping[str, Any]) -> None:
    CombineOptions(weights_for(len(values["adapters"]), values.get("weights")))


def _of_convert(values: Mapping[str, Any]) -> None:
    rule = (values.get("rank"), values.get("energy"))
    ConvertOptions.of(values["to"], values.get("as_"), *rule, bake=False)


def _of_pull(values: Mapping[str, Any]) -> None:
    HubUri.parse(values["uri"])
    check_local(Path(values["out"]))


def _of_push(values: Mapping[str, Any]) -> None:
    HubUri.parse(values["uri"])
    check_local(Path(values["path"]))


def _of_files(values: Mapping[str, Any]) -> None:
    for path in _picked(values, "provenance", "bom", "html").values():
        check_local(Path(path))


def _picked(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _judge(*parts: Judge) -> Judge:
    def judge(values: Mapping[str, Any]) -> None:
        for part in (*parts, _of_machine, _of_files):
            part(values)

    return judge


_JUDGES: Mapping[str, Judge] = {
    **{each.__name__: _judge() for each in FUNCTIONS},
    "resize": _judge(_of_resize),
    "extract": _judge(_of_extract),
    "combine": _judge(_of_combine),
    "convert": _judge(_of_convert),
    "pull": _judge(_of_pull),
    "push": _judge(_of_push),
}
