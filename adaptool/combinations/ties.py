"""TIES: trim small elements, elect signs, merge those that agree.

    trim:  tau_t := top_density(w_t D_t)
    elect: gamma = sgn(sum_t tau_t)
    merge: D = mean of the tau_t with sgn(tau_t) = gamma

(Yadav et al. 2023, TIES-Merging, arXiv 2306.01708.) The paper trims the task vector of the whole
model at once; here, as in PEFT and mergekit, every module is trimmed to the density by itself.
The mean is over the number of agreeing adapters: two adapters that agree, at weights 0.5 each, give
half their average. election.py says how PEFT's and mergekit's signs and means differ. PEFT's
`ties` (without _svd) elects signs in A and B apart, which has no meaning for the delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.election import elected_mean
from adaptool.combinations.method import Deltas, Majority, Method, Options, Rule, Space
from adaptool.combinations.trimming import Trimming

if TYPE_CHECKING:
    import torch

METHOD = Method("trim, elect sign, merge", Space.DELTA, takes_density=True, takes_majority=True)


@dataclass(frozen=True, slots=True)
class _Ties:
    trimming: Trimming
    majority: Majority

    def apply(self, rows: slice, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The elected mean of the trimmed tasks."""
        del rows
        return elected_mean(self.trimming.tasks(deltas), self.majority)


def rule(deltas: Deltas, options: Options) -> Rule:
    """Finds the thresholds, in two passes."""
    return _Ties(Trimming.found(deltas, options.density), options.majority)
