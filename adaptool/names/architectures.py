"""The denoisers that diffusers has, and which of them a set of modules may belong to.

Architectures share module names: `transformer_blocks.0.attn.to_q` is a module of a dozen. Those of
`diffusion.py` have tables between two namings; of the others only the modules are known, so that a
name which is not one architecture's alone is never taken for it. `diffusion_models.json` is
generated from diffusers 0.42.1 by tests/models_from_diffusers.py.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from adaptool.names.diffusion import Family, families
from adaptool.names.templates import Table, filled

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
# diffusers' classes whose checkpoints have the names of one table.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "sd": (),
    "sdxl": (),
    "flux": ("FluxTransformer2DModel", "ChromaTransformer2DModel"),
    "flux2": ("Flux2Transformer2DModel",),
    "sd3": ("SD3Transformer2DModel",),
    "qwen-image": ("QwenImageTransformer2DModel",),
    "z-image": ("ZImageTransformer2DModel",),
    "lumina2": ("Lumina2Transformer2DModel",),
    "wan": (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "ChronoEditTransformer3DModel",
        "AnyFlowTransformer3DModel",
        "AnyFlowFARTransformer3DModel",
        "HeliosTransformer3DModel",
    ),
    "hunyuan-video": (
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoFramepackTransformer3DModel",
    ),
    "anima": ("CosmosTransformer3DModel",),
}
# Blocks of the largest published model, where it has more than `Family.counts` says.
_LARGEST: Mapping[str, Mapping[str, int]] = {
    "sd3": {"transformer_blocks": 38},
    "anima": {"transformer_blocks": 36},
}
# Inputs of the query projections in the published models.
_WIDTHS: Mapping[str, frozenset[int]] = {
    "sd": frozenset({320, 640, 1280}),
    "sdxl": frozenset({640, 1280}),
    "flux": frozenset({3072}),
    "flux2": frozenset({3072, 4096, 6144}),
    "sd3": frozenset({1536, 2432}),
    "qwen-image": frozenset({3072}),
    "z-image": frozenset({3840}),
    "lumina2": frozenset({2304}),
    "wan": frozenset({1536, 2048, 3072, 5120}),
    "hunyuan-video": frozenset({3072}),
    "anima": frozenset({2048, 5120}),
}
# Inputs of a UNet's cross attention: those of the text encoders.
_CONTEXTS: Mapping[str, frozenset[int]] = {
    "sd": frozenset({768, 1024}),
    "sdxl": frozenset({1280, 2048}),
}
_QUERY = re.compile(r"(?:attn\w*|attention|self_attention)\.(?:to_q|add_q_proj|to_qkv)$")
_CONTEXT = re.compile(r"attn2\.to_[kv]$")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One denoiser. `family` is its table, where there is one.

    `templates`: the modules of its class with `#` for every number. `blocks`: how many blocks the
    largest published model has, by the first part of a module's path.
    """

    name: str
    component: str
    family: Family | None
    templates: frozenset[str] = field(repr=False)
    blocks: Mapping[str, int]
    widths: frozenset[int]
    contexts: frozenset[int] = frozenset()

    def knows(self, path: str) -> bool:
        """Whether diffusers' model has this module."""
        return self.name in knowing(path)

    def by_flat(self, name: str) -> str | None:
        """diffusers' module path that is `name` with `_` for every dot."""
        return _flattened(name).get(self.name)

    def holds(self, highest: Mapping[str, int]) -> bool:
        """Whether it has as many blocks as these numbers need, stack -> highest number."""
        return all(
            number < self.blocks[stack] for stack, number in highest.items() if stack in self.blocks
        )

    def is_whole(self, highest: Mapping[str, int]) -> bool:
        """Whether all blocks of all its stacks are there: two numbers alike are no accident."""
        counts = self.blocks if self.family is None else self.family.counts
        return len(counts) > 1 and all(highest.get(s) == n - 1 for s, n in counts.items())

    def is_as_wide(self, widths: Widths) -> bool:
        """Whether a published model of it has these inputs of its projections."""
        contexts = not self.contexts or widths.contexts <= self.contexts
        return bool(widths.queries or widths.contexts) and contexts and self._fits(widths.queries)

    def _fits(self, queries: frozenset[int]) -> bool:
        return queries <= self.widths


@dataclass(frozen=True, slots=True)
class Widths:
    """Inputs of an adapter's projections: of queries, and of a second attention's keys."""

    queries: frozenset[int]
    contexts: frozenset[int]


# Files name a module several times, and a base is asked for as many.
_REMEMBERED = 1 << 16


@functools.lru_cache(_REMEMBERED)
def knowing(path: str) -> frozenset[str]:
    """The names of the architectures that have this module of diffusers."""
    stands_for = template(path)
    return frozenset(
        name
        for name, each in architectures().items()
        if stands_for in each.templates or (each.family and each.family.by_module(path))
    )


@functools.lru_cache(_REMEMBERED)
def _flattened(name: str) -> Mapping[str, str]:
    """Architecture -> its module path that is `name` with `_` for every dot."""
    found = {}
    for each in architectures().values():
        path = each.family.by_flat_module(name) if each.family else None
        path = path or _by_template(each.templates, name)
        if path is not None:
            found[each.name] = path
    return found


def _by_template(templates: frozenset[str], name: str) -> str | None:
    found = _flat_table(templates).find(name)
    return None if found is None else filled(*found)


@functools.cache
def _flat_table(templates: frozenset[str]) -> Table[str]:
    return Table(((each, each) for each in sorted(templates)), flat=True)


def template(path: str) -> str:
    """The path with `#` for every number."""
    return _NUMBER.sub("#", path)


@functools.cache
def architectures() -> Mapping[str, Architecture]:
    """All by name: a table's, or a class of diffusers that has no table."""
    classes = _classes()
    tabled = {
        name: Architecture(
            name,
            family.component,
            family,
            frozenset(each for kind in CLASSES[name] for each in classes[kind]["modules"].split()),
            {**family.counts, **_LARGEST.get(name, {})},
            _WIDTHS[name],
            _CONTEXTS.get(name, frozenset()),
        )
        for name, family in families().items()
    }
    taken = {kind for kinds in CLASSES.values() for kind in kinds}
    others = {
        kind: Architecture(
            kind,
            "transformer",
            None,
            frozenset(facts["modules"].split()),
            facts["blocks"],
            frozenset(facts["widths"]),
        )
        for kind, facts in classes.items()
        if kind not in taken
    }
    return {**tabled, **others}


def _classes() -> dict[str, dict[str, Any]]:
    text = resources.files("adaptool.names").joinpath("diffusion_models.json").read_text("utf-8")
    return dict(json.loads(text))


def of_class(name: str) -> Architecture | None:
    """The architecture of a class of diffusers; None for one that is not known, or is a UNet."""
    tabled = next((table for table, kinds in CLASSES.items() if name in kinds), name)
    return architectures().get(tabled)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an adapter's denoiser: its modules under diffusers' names, and their inputs.

    `said`: the architectures that the file's metadata, or the base's name, speaks of.
    """

    inputs: Mapping[str, int | None]
    said: frozenset[str] = frozenset()

    @property
    def highest(self) -> Mapping[str, int]:
        """The highest block number of each stack."""
        found: dict[str, int] = {}
        for path in self.inputs:
            stack, _, rest = path.partition(".")
            number = rest.partition(".")[0]
            if number.isdigit():
                found[stack] = max(found.get(stack, -1), int(number))
        return found

    @property
    def widths(self) -> Widths:
        """The inputs of its projections, as far as tensors tell them."""

        def of(pattern: re.Pattern[str]) -> frozenset[int]:
            found = (inner for path, inner in self.inputs.items() if pattern.search(path))
            return frozenset(inner for inner in found if inner)

        return Widths(of(_QUERY), of(_CONTEXT))


def narrowed(found: Sequence[Architecture], facts: Facts) -> tuple[Architecture, ...]:
    """Those of `found` that the facts leave; all of them where the facts leave none.

    A whole model's blocks decide for the one with a table: it is the one that is trained most.
    """
    highest, widths = facts.highest, facts.widths
    rules: tuple[Callable[[Architecture], bool], ...] = (
        lambda each: each.holds(highest),
        lambda each: each.name in facts.said,
        lambda each: each.is_as_wide(widths),
        lambda each: each.family is not None and each.is_whole(highest),
    )
    for rule in rules:
        found = [each for each in found if rule(each)] or found
    return tuple(found)


def knowing_most(paths: Iterable[str]) -> tuple[Architecture, ...]:
    """The architectures that have the most of these modules of diffusers; () where none has any."""
    scores = Counter(name for path in paths for name in knowing(path))
    most = max(scores.values(), default=0)
    return tuple(each for each in architectures().values() if most and scores[each.name] == most)
