"""DARE's step: drop elements at random, rescale those that stay.

    m ~ Bernoulli(p) element by element, p = 1 - density;   D' = (1 - m) D / (1 - p)

(Yu et al. 2023, Language Models are Super Mario, arXiv 2311.03099.) PEFT draws from torch's global
generator; here the draw of an element is fixed by seed, module, adapter and position (draws.py).
mergekit rescales to the L1 norm of the original delta instead of by 1/(1 - p).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.draws import uniform
from adaptool.combinations.method import Deltas

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Dropping:
    """What decides which elements stay."""

    name: str
    weights: tuple[float, ...]
    places: tuple[int, ...]
    density: float
    seed: int

    @classmethod
    def of(cls, deltas: Deltas, density: float, seed: int) -> Dropping:
        """No pass is needed: draws do not depend on values."""
        return cls(deltas.name, tuple(deltas.weights), tuple(deltas.places), density, seed)

    def tasks(self, rows: slice, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """w_t D'_t of these rows."""
        return [
            weight * self._dropped(rows, place, delta)
            for weight, place, delta in zip(self.weights, self.places, deltas, strict=True)
        ]

    def _dropped(self, rows: slice, place: int, delta: torch.Tensor) -> torch.Tensor:
        if self.density >= 1:
            return delta
        drawn = uniform(self.seed, self.name, place, rows, delta.shape[1])
        return delta * (drawn < self.density) / self.density
