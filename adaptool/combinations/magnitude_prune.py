"""Magnitude pruning: of every delta the largest elements, then the weighted sum.

    D = sum_t w_t top_density(D_t)

As PEFT's `magnitude_prune_svd`, per module. PEFT's `magnitude_prune` prunes the factors A and B
apart, which is not a pruning of the delta. PEFT's top-k picks any of equal elements at the
threshold; here they are all kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.method import Deltas, Method, Options, Rule, Space
from adaptool.combinations.trimming import Trimming

if TYPE_CHECKING:
    import torch

METHOD = Method("largest elements, summed", Space.DELTA, takes_density=True)


@dataclass(frozen=True, slots=True)
class _MagnitudePrune:
    trimming: Trimming

    def apply(self, rows: slice, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum of the trimmed tasks."""
        import torch

        del rows
        return torch.stack(self.trimming.tasks(deltas)).sum(0)


def rule(deltas: Deltas, options: Options) -> Rule:
    """Finds the thresholds, in two passes."""
    return _MagnitudePrune(Trimming.found(deltas, options.density))
