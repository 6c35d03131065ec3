"""r, lora_alpha and their patterns, and what PEFT computes from them for each module.

PEFT looks both up by one name for each module; modules that share it (in_proj and out_proj of an
nn.MultiheadAttention) share rank and scale. What one of them has otherwise goes into its factors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptool.layouts.peft_modules import MHA_OUT, pattern_name
from adaptool.model.adapter import Delta, Form
from adaptool.names.selection import endings
from adaptool.tuners import tuners


@dataclass(frozen=True, slots=True)
class Scales:
    """The scale that PEFT computes for each name that it looks up, and the config's fields."""

    fields: Mapping[str, Any]
    by_name: Mapping[str, float]

    def share(self, delta: Delta) -> float:
        """What the factors must be multiplied by, so that with PEFT's scale it is the delta's."""
        told = self.by_name.get(looked_up(delta))
        return 1.0 if told is None else own_scaling(delta) / told


def looked_up(delta: Delta) -> str:
    """The name that PEFT looks rank and alpha up by; modules that share it share both."""
    return delta.parameter if by_name(delta) else pattern_name(delta.module)


def by_name(delta: Delta) -> bool:
    """Whether PEFT targets the parameter by name (`target_parameters`), not its module."""
    return delta.terms.form is Form.EXPERTS or bool(delta.terms.conventions.get("parameter"))


def own_scaling(delta: Delta) -> float:
    """The scaling that PEFT computes from the config.

    It counts nn.MultiheadAttention's output projection twice by itself.
    """
    doubled = delta.module.endswith(MHA_OUT)
    return delta.terms.scaling / 2 if doubled else delta.terms.scaling


def carrier(delta: Delta) -> str | None:
    """The role that its tuner's update is proportional to; None where it is to none."""
    roles = tuners()[delta.tuner].DECLARATION.proportional
    return next((role for role in roles if role in delta.roles), None)


def scales_of(deltas: Sequence[Delta], *, rslora: bool, bake: bool, alpha_field: str) -> Scales:
    """Fields for deltas that have a rank; with `bake` every scale is 1, so alpha = r.

    `alpha_field` is what the kind of adapter calls its alpha.
    """
    groups: dict[str, list[Delta]] = {}
    for delta in deltas:
        groups.setdefault(looked_up(delta), []).append(delta)
    ranks = {name: max(each.terms.rank or 1 for each in group) for name, group in groups.items()}
    told = {name: 1.0 if bake else _told(group) for name, group in groups.items()}
    alphas = {
        name: _alpha(groups[name][0], ranks[name], scale, rslora=rslora and not bake)
        for name, scale in told.items()
    }
    fields = _patterns(ranks, alphas, alpha_field)
    return Scales(fields | ({"use_rslora": False} if bake and rslora else {}), told)


def _told(group: Sequence[Delta]) -> float:
    """The scale that those of one name are given: the first's, but never 0."""
    return next((scale for delta in group if (scale := own_scaling(delta))), 1.0)


def _alpha(delta: Delta, rank: int, scaling: float, *, rslora: bool) -> float:
    """The alpha that gives the scaling: the one it was read with where that still does."""
    divisor = math.sqrt(rank) if rslora else rank
    alpha = delta.terms.alpha
    if alpha is not None and alpha / divisor == scaling:
        return alpha
    return scaling * divisor


def _patterns(
    ranks: Mapping[str, int], alphas: Mapping[str, float], alpha_field: str
) -> dict[str, Any]:
    ends = {ending for name in ranks for ending in endings(name) if ending != name}
    rank, alpha = _most(ranks.values()), _most(alphas.values())
    return {
        "r": rank,
        alpha_field: _number(alpha),
        "rank_pattern": {_key(name, ends): found for name, found in ranks.items() if found != rank},
        "alpha_pattern": {
            _key(name, ends): _number(found) for name, found in alphas.items() if found != alpha
        },
    }


def _key(name: str, ends: Collection[str]) -> str:
    """The name, anchored where it is among the `ends` of other modules' names."""
    return f"^{name}" if name in ends else name


def _most(values: Iterable[Any]) -> Any:  # noqa: ANN401 - ranks or alphas
    """The most frequent value, of several the largest."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
