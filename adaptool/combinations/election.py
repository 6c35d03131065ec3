"""Electing a sign for every element, and the mean of those that have it.

    gamma = sgn(sum_t tau_t)
    D = (1 / |A|) sum_(t in A) tau_t,   A = {t : sgn(tau_t) = gamma}

(TIES, Yadav et al. 2023, arXiv 2306.01708, steps 2 and 3.) By frequency every non-zero element has
one vote; even votes are decided by the sum. Where the sum is 0 nobody is elected and the element
is 0, which is the paper's formula; PEFT elects plus there, in favour of whichever adapter is
positive. The election is among the weighted task vectors w_t D_t; PEFT elects among the D_t and
multiplies by w_t afterwards, so that with a negative weight the elected adapters can be the ones
that pull the other way. Both agree for positive weights that are equal. mergekit divides by the
sum of the weights in A instead of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.method import Majority

if TYPE_CHECKING:
    import torch


def elected_mean(tasks: Sequence[torch.Tensor], majority: Majority) -> torch.Tensor:
    """The mean over the tasks that have the elected sign; all (rows, in)."""
    import torch

    stack = torch.stack(list(tasks))
    sign = stack.sign()
    elected = stack.sum(0).sign()
    if majority is Majority.FREQUENCY:
        votes = sign.sum(0).sign()
        elected = torch.where(votes == 0, elected, votes)
    agreeing = (sign == elected) & (elected != 0)
    mean: torch.Tensor = (stack * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    return mean
