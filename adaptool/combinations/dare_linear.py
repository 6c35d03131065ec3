"""DARE, then the weighted sum.

    D = sum_t w_t (1 - m_t) D_t / density

See dropping.py for the paper and for how PEFT's `dare_linear_svd` and mergekit differ. PEFT's
`dare_linear` (without _svd) drops elements of A and B, not of the delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.dropping import Dropping
from adaptool.combinations.method import Deltas, Method, Options, Rule, Space

if TYPE_CHECKING:
    import torch

METHOD = Method("drop at random and rescale, sum", Space.DELTA, seeded=True, takes_density=True)


@dataclass(frozen=True, slots=True)
class _DareLinear:
    dropping: Dropping

    def apply(self, rows: slice, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum of the rescaled tasks."""
        import torch

        return torch.stack(self.dropping.tasks(rows, deltas)).sum(0)


def rule(deltas: Deltas, options: Options) -> Rule:
    """Needs no pass."""
    return _DareLinear(Dropping.of(deltas, options.density, options.seed))
