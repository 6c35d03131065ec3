"""DELLA: drop at random, small elements more often, rescale; elect signs, merge those that agree.

    in every row of D_t (the n inputs of an output): r_i = 0 for the largest magnitude .. n - 1
    p_i = p_min + (epsilon / n) r_i,   p_min = p - epsilon / 2,   p = 1 - density
    m_i ~ Bernoulli(p_i),   tau_i := w_t (1 - m_i) D_i / (1 - p_i)
    D = mean of the tau_t with the elected sign

(Deep et al. 2024, DELLA-Merging, arXiv 2406.11617: MAGPRUNE, elect, fuse with lambda = 1.) The
paper tunes epsilon; here it is min(p, 1 - p), half of what keeps every p_i in [0, 1): an element
is kept with a probability of at least density / 2. Equal magnitudes (as float32) are ranked by
position. mergekit spreads the probabilities over density +- epsilon, twice as far for the same
epsilon, and rescales to the norm of the original delta instead of by 1/(1 - p_i). PEFT has no
DELLA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.draws import uniform
from adaptool.combinations.election import elected_mean
from adaptool.combinations.method import Deltas, Method, Options, Rule, Space
from adaptool.combinations.thresholds import keys

if TYPE_CHECKING:
    import torch

METHOD = Method(
    "drop at random by magnitude and rescale, elect sign, merge",
    Space.DELTA,
    seeded=True,
    takes_density=True,
    takes_majority=True,
)


@dataclass(frozen=True, slots=True)
class _Della:
    name: str
    weights: tuple[float, ...]
    places: tuple[int, ...]
    options: Options

    def apply(self, rows: slice, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The elected mean of the rescaled tasks."""
        tasks = [
            weight * self._sampled(rows, place, delta)
            for weight, place, delta in zip(self.weights, self.places, deltas, strict=True)
        ]
        return elected_mean(tasks, self.options.majority)

    def _sampled(self, rows: slice, place: int, delta: torch.Tensor) -> torch.Tensor:
        if self.options.density >= 1:
            return delta
        keep = keep_probabilities(delta, self.options.density)
        drawn = uniform(self.options.seed, self.name, place, rows, delta.shape[1])
        return delta * (drawn < keep) / keep


def keep_probabilities(delta: torch.Tensor, density: float) -> torch.Tensor:
    """1 - p_i for every element of (rows, n), ranked inside its row."""
    import torch

    width = delta.shape[1]
    drop = 1 - density
    epsilon = min(drop, density)
    by_rank = 1 - (drop - epsilon / 2 + epsilon / width * torch.arange(width, dtype=torch.float64))
    order = keys(delta).argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(delta).scatter_(1, order, by_rank.expand_as(delta))


def rule(deltas: Deltas, options: Options) -> Rule:
    """Needs no pass: ranks are taken inside a row."""
    return _Della(deltas.name, tuple(deltas.weights), tuple(deltas.places), options)
