"""What a combination was asked to do, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.options import OutputDtype


@dataclass(frozen=True, slots=True)
class CombineOptions:
    """The method and its numbers; `weights` one for each adapter, in their order."""

    weights: tuple[float, ...]
    method: str = "cat"
    rank: int | None = None
    density: float = 1.0
    majority_sign: str = "total"
    seed: int = 0
    dtype: OutputDtype = OutputDtype.FLOAT32

    def __post_init__(self) -> None:
        """UsageError where a weight is no number, or none of them counts."""
        if not all(map(math.isfinite, self.weights)):
            message = f"{', '.join(map(str, self.weights))} are not all finite numbers"
            raise UsageError(message, code=Code.USAGE, field="--weights")
        if not any(self.weights):
            message = "every weight is 0, so there is nothing to combine"
            raise UsageError(message, code=Code.USAGE, field="--weights")

    def as_json(self) -> dict[str, Any]:
        """What decides the bytes, as the receipt records it."""
        return {
            "weights": list(self.weights),
            "method": self.method,
            "rank": self.rank,
            "density": self.density,
            "majority_sign": self.majority_sign,
            "seed": self.seed,
            "dtype": str(self.dtype),
        }


def weights_for(count: int, given: Sequence[float] | None) -> tuple[float, ...]:
    """One weight an adapter, 1 by default; UsageError where their numbers differ."""
    weights = tuple(given) if given is not None else (1.0,) * count
    if len(weights) != count:
        message = f"{len(weights)} weights for {count} adapters"
        raise UsageError(message, code=Code.USAGE, field="--weights", hint="one for each, in order")
    return weights
