"""How diffusers reads a LoRA: keys below a component, and the LoRA configs in the metadata.

A component's keys are those below its name; `text_model.` is no part of a text encoder's modules
under transformers 5. With metadata the component's config is PEFT's LoraConfig, whose patterns say
each module's rank and alpha; without, alpha is the rank. One magnitude makes it DoRA for all.
Source: diffusers 0.42.1, loaders/peft.py, loaders/lora_base.py, utils/peft_utils.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from adaptool.names.patterns import PatternTable
from adaptool.readers.values import Applied, File, Loaded

PROGRAM = "diffusers 0.42.1"
METADATA = "lora_adapter_metadata"
A, B, BIAS, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"
ENDINGS = (A, B, BIAS, MAGNITUDE)
CLIP = "text_model."


@dataclass(frozen=True, slots=True)
class Component:
    """What a file holds for one model: module -> ending -> key, and its LoRA config."""

    name: str
    config: Mapping[str, Any] | None
    modules: dict[str, dict[str, str]] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> tuple[float, int]:
        """PEFT's scale of a module, and the rank that it makes room for."""
        if self.config is None:
            return 1.0, rank
        path = module.removeprefix(CLIP)
        own = self._get("rank_pattern", path, self.config["r"])
        alpha = self._get("alpha_pattern", path, self.config["lora_alpha"])
        return alpha / (math.sqrt(own) if self.config.get("use_rslora") else own), own

    def _get(self, pattern: str, path: str, default: Any) -> Any:  # noqa: ANN401 - JSON's numbers
        return PatternTable((self.config or {}).get(pattern) or {}, field=pattern).get(
            path, default
        )


def read(file: File) -> Loaded:
    """What diffusers does with the file."""
    components, unread = _components(file)
    applied: list[Applied] = []
    missing: list[str] = []
    for each in components.values():
        dora = any(MAGNITUDE in found for found in each.modules.values())
        for module, keys in each.modules.items():
            wanted = (A, B, *([MAGNITUDE] if dora else []))
            absent = [f"{each.name}.{module}.{ending}" for ending in wanted if ending not in keys]
            missing += absent
            if not absent:
                applied += _applied(file, each, module, keys)
                missing += _unfit(file, each, module, keys)
    return Loaded(tuple(applied), unread=tuple(unread), missing=tuple(missing))


def _components(file: File) -> tuple[dict[str, Component], list[str]]:
    packed = json.loads(file.metadata.get(METADATA, "null"))
    found: dict[str, Component] = {}
    unread = []
    for key in file.tensors:
        component, _, rest = key.partition(".")
        ending = next((each for each in ENDINGS if rest.endswith(f".{each}")), None)
        if ending is None:
            unread.append(key)
            continue
        if component not in found:
            found[component] = Component(component, _config(packed, component))
        module = rest.removesuffix(f".{ending}")
        found[component].modules.setdefault(module, {})[ending] = key
    return found, unread


def _config(packed: Mapping[str, Any] | None, component: str) -> Mapping[str, Any] | None:
    if packed is None:
        return None
    prefix = f"{component}."
    return {key.removeprefix(prefix): v for key, v in packed.items() if key.startswith(prefix)}


def _applied(
    file: File, component: Component, module: str, keys: Mapping[str, str]
) -> Iterator[Applied]:
    a, b = file.shape(keys[A]), file.shape(keys[B])
    scale, _ = component.scale(module, a[0])
    dora = MAGNITUDE in keys
    sources = (keys[A], keys[B], *([keys[MAGNITUDE]] if dora else []))
    path = _path(file, component.name, module)
    tuner = "dora" if dora else "lora"
    yield Applied(f"{path}.weight", tuner, sources, (b[0], prod(a[1:])), a[0], scale)
    if BIAS in keys:
        yield Applied(f"{path}.bias", "shift", (keys[BIAS],), scale=scale)


def _unfit(file: File, component: Component, module: str, keys: Mapping[str, str]) -> Iterator[str]:
    """A factor of another rank than the config has for it."""
    rank = file.shape(keys[A])[0]
    if component.scale(module, rank)[1] != rank:
        yield f"{keys[A]} at rank {component.scale(module, rank)[1]}"


def _path(file: File, component: str, module: str) -> str:
    """The module by the name that the adapter has for it: a model's alone lacks the component."""
    return module if module in file.modules else f"{component}.{module}"
