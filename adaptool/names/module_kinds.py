"""What kind of module holds a parameter, by its name: from a table generated from transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from importlib import resources
from typing import Any

_EVERY = "*"
_MATRIX = 2
# nn.MultiheadAttention's: PEFT targets the module, or it is saved as a whole.
_OF_ATTENTION = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})


class Kind(StrEnum):
    """What an adapter takes a parameter for.

    CONV1D is transformers' own linear layer, stored (in, out). PARAMETER is what no layer of PEFT
    does the same with: it can only be targeted by its own name. ATTENTION belongs to an
    nn.MultiheadAttention.
    """

    LINEAR = "linear"
    EMBEDDING = "embedding"
    CONVOLUTION = "convolution"
    CONV1D = "conv1d"
    PARAMETER = "parameter"
    ATTENTION = "attention"


_LISTED = (Kind.EMBEDDING, Kind.CONV1D, Kind.PARAMETER)


def kind_of(model_types: Sequence[str], parameter: str, axes: int) -> Kind:
    """The kind of a module's parameter with two axes or more.

    `model_types`: config.model_type and those of the sub-configs.
    """
    path, _, leaf = parameter.rpartition(".")
    if leaf in _OF_ATTENTION:
        return Kind.ATTENTION
    if leaf != "weight":
        return Kind.PARAMETER
    usual = Kind.LINEAR if axes == _MATRIX else Kind.CONVOLUTION
    return _listed(short_name(path), frozenset(model_types)) or usual


def _listed(name: str, types: frozenset[str]) -> Kind | None:
    """The kind that the table has for a module's last name; None for a usual one."""
    table = _table()
    if types & _types(table["usual"], name):
        return None
    for kind in _LISTED:
        if types & _types(table[kind], name):
            return kind
    return next((kind for kind in _LISTED if table[kind].get(name) == _EVERY), None)


def _types(entries: Mapping[str, str], name: str) -> frozenset[str]:
    return frozenset(entries.get(name, "").split())


def short_name(path: str) -> str:
    """The last name of a module; with the one before it where it is a number."""
    *parents, name = path.split(".")
    if name.isdecimal() and parents:
        return f"{'#' if parents[-1].isdecimal() else parents[-1]}.#"
    return name


def is_headless(classes: Iterable[str]) -> bool:
    """Whether these classes (config.architectures) are known to have names without a prefix."""
    return any(name in _headless() for name in classes)


@lru_cache(maxsize=1)
def _headless() -> frozenset[str]:
    return frozenset(_table()["headless"])


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Any]:
    """The parsed modules.json. The file is ours, so its shape is trusted."""
    text = resources.files("adaptool.names").joinpath("modules.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
