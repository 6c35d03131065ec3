"""Trimming: of every delta only the elements of largest magnitude are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.method import Deltas
from adaptool.combinations.thresholds import keys, thresholds

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Trimming:
    """The thresholds of a module's deltas, as keys (thresholds.py)."""

    weights: tuple[float, ...]
    thresholds: tuple[int, ...]

    @classmethod
    def found(cls, deltas: Deltas, density: float) -> Trimming:
        """Two passes over `deltas`, none at density 1."""
        return cls(tuple(deltas.weights), thresholds(deltas, density))

    def tasks(self, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """w_t D_t where D_t reaches its threshold, else 0."""
        return [
            weight * (delta * (keys(delta) >= threshold) if threshold else delta)
            for weight, threshold, delta in zip(self.weights, self.thresholds, deltas, strict=True)
        ]
