"""How an adapter's file is to be read where the file alone does not say."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.options import ExpertPacking, chosen

SCALE_HINT = "--alpha N (or --scale F) of the training says it"
"""What to do where a file carries no scale."""


def is_allowed(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name matches one of the globs of --allow-drop."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


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
    `describes`: the adapter is only described, so that a scale that nobody gives is NaN instead of
    an error. `as_stored`: rows of a GGUF file whose order only a base tells are left as they are,
    which is enough to say what llama.cpp makes of it.
    """

    allow_drop: tuple[str, ...] = ()
    expert_packing: ExpertPacking = ExpertPacking.PEFT
    alpha: float | None = None
    scale: float | None = None
    base: BaseNames | None = None
    describes: bool = False
    as_stored: bool = False

    def __post_init__(self) -> None:
        """Refuse an alpha beside a scale."""
        if self.alpha is not None and self.scale is not None:
            message = f"an alpha ({self.alpha:g}) and a scale ({self.scale:g}) of one adapter"
            hint = "give one of --alpha and --scale for each adapter"
            raise UsageError(message, code=Code.USAGE, field="--alpha", hint=hint)


AS_IT_STANDS = Reading()
"""Nothing is said: the file must say it all."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller says of several adapters' files: alphas and scales in the adapters' order."""

    alpha: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    allow_drop: tuple[str, ...] = ()
    expert_packing: ExpertPacking = ExpertPacking.PEFT
    describes: bool = False

    @classmethod
    def of(
        cls,
        alpha: Sequence[float] = (),
        scale: Sequence[float] = (),
        allow_drop: Sequence[str] = (),
        expert_packing: str = "peft",
    ) -> Self:
        """As options give it; UsageError for a packing that is none."""
        packing = chosen(ExpertPacking, expert_packing, "--expert-packing")
        return cls(tuple(alpha), tuple(scale), tuple(allow_drop), packing)

    def of_one(self, place: int) -> Self:
        """What is said of the adapter at `place` alone."""
        return replace(
            self, alpha=self.alpha[place : place + 1], scale=self.scale[place : place + 1]
        )

    def reading(self, place: int = 0, base: BaseNames | None = None) -> Reading:
        """How the adapter at `place` is read, beside `base`; no scale where none is left for it."""
        return Reading(
            self.allow_drop,
            self.expert_packing,
            next(iter(self.alpha[place : place + 1]), None),
            next(iter(self.scale[place : place + 1]), None),
            base,
            self.describes,
        )


NOTHING_TOLD = Told()
"""Nothing is said of any of them."""
