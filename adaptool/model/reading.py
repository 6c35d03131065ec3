"""How an adapter's file is to be read where the file alone does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptool.model.options import ExpertPacking


@dataclass(frozen=True, slots=True)
class BaseNames:
    """What a layout may know of the base: its tensors' names and shapes, and its config.

    Flattened names (`lora_unet_a_b_c`) are matched against the base's own keys; head counts of
    its config undo the permutation of q and k.
    """

    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the caller says of an adapter's file.

    `allow_drop`: globs of tensors that may be lost. `expert_packing`: of stacked experts where
    the file does not record it. `alpha`, `scale`: for files that carry neither; at most one.
    """

    allow_drop: tuple[str, ...] = ()
    expert_packing: ExpertPacking = ExpertPacking.PEFT
    alpha: float | None = None
    scale: float | None = None
    base: BaseNames | None = None


AS_IT_STANDS = Reading()
"""Nothing is said: the file must say it all."""
