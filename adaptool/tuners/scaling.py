"""Rank, alpha and scaling of one module, as PEFT's configs state them.

Rank and alpha are looked up independently in `rank_pattern` and `alpha_pattern`, first match in
dict order (PEFT >= 0.15). s = alpha / r, or alpha / sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.names.patterns import PatternTable

LARGEST_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """A config's patterns as a cache key: equal to themselves alone, never compared by content.

    The cache holds on to them, so their identity is not given to others.
    """

    patterns: Mapping[str, Any]

    def __hash__(self) -> int:
        return id(self.patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.patterns is other.patterns


@functools.lru_cache(maxsize=32)
def _table(same: _Same, field: str) -> PatternTable[float]:
    # One table serves every module of an adapter.
    return PatternTable(same.patterns, field=field)


def looked_up(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:  # noqa: ANN401 - a JSON value
    """What the patterns under `field` say of `module`; `default` where none of them matches."""
    patterns = config.get(field)
    if not patterns:
        return default
    return _table(_Same(patterns), field).get(module, default)


def rank_of(config: Mapping[str, Any], module: str) -> int | None:
    """The rank that the config gives `module`; None where it gives none."""
    rank: int | None = looked_up(config, "rank_pattern", module, config.get("r"))
    return rank


def alpha_of(config: Mapping[str, Any], module: str) -> float:
    """The alpha that the config gives `module`; InputError where it gives none."""
    alpha: float | None = looked_up(config, "alpha_pattern", module, config.get("lora_alpha"))
    if alpha is None:
        hint = "state it in adapter_config.json; PEFT would silently take 8"
        message = "there is no lora_alpha, so the scale is unknown"
        raise InputError(message, code=Code.FIELD_MISSING, field="lora_alpha", hint=hint)
    return float(alpha)


def lora_scaling(config: Mapping[str, Any], module: str, tensor_rank: int) -> float:
    """s of one module whose factors have rank `tensor_rank` (for experts: one expert's).

    InputError: the config's rank is another one than the tensors', or s is no finite float32.
    """
    rank = rank_of(config, module)
    if rank is not None and rank != tensor_rank:
        message = f"the config gives rank {rank}, the tensors have rank {tensor_rank}"
        hint = "the scale would be wrong by their ratio: correct r or rank_pattern"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r", hint=hint)
    alpha = alpha_of(config, module)
    root = bool(config.get("use_rslora"))
    scaling = alpha / (math.sqrt(tensor_rank) if root else tensor_rank)
    if not abs(scaling) <= LARGEST_FLOAT32:
        message = f"lora_alpha {alpha:g} gives a scale that float32 cannot hold"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, tensor=module, field="lora_alpha")
    return scaling
