"""DARE in the place of TIES' trimming: drop and rescale, elect signs, merge those that agree.

    tau_t := w_t (1 - m_t) D_t / density;   gamma = sgn(sum_t tau_t)
    D = mean of the tau_t with sgn(tau_t) = gamma

See dropping.py and election.py for the papers and for how PEFT's `dare_ties_svd` and mergekit
differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.dropping import Dropping
from adaptool.combinations.election import elected_mean
from adaptool.combinations.method import Deltas, Majority, Method, Options, Rule, Space

if TYPE_CHECKING:
    import torch

METHOD = Method(
    "drop at random and rescale, elect sign, merge",
    Space.DELTA,
    seeded=True,
    takes_density=True,
    takes_majority=True,
)


@dataclass(frozen=True, slots=True)
class _DareTies:
    dropping: Dropping
    majority: Majority

    def apply(self, rows: slice, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The elected mean of the rescaled tasks."""
        return elected_mean(self.dropping.tasks(rows, deltas), self.majority)


def rule(deltas: Deltas, options: Options) -> Rule:
    """Needs no pass."""
    return _DareTies(Dropping.of(deltas, options.density, options.seed), options.majority)
