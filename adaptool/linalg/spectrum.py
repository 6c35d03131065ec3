"""What a list of singular values says."""

from __future__ import annotations

import math
from collections.abc import Sequence


def effective_rank(values: Sequence[float]) -> float:
    """exp(-sum p log p) with p the squared singular values over their sum; 0 where all are 0.

    It is k for k equal singular values. (Roy and Vetterli 2007 take the values themselves for p;
    with squares p is the share of energy, which truncation is judged by.)
    """
    shares = energy_shares(values)
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0)) if shares else 0.0


def energy_shares(values: Sequence[float]) -> tuple[float, ...]:
    """Each squared singular value over the sum of them; empty where all are 0."""
    largest = max(values, default=0.0)
    if largest == 0:
        return ()
    # Scaled first: squares of very large or small values leave the range of float64.
    squares = [(value / largest) ** 2 for value in values]
    total = math.fsum(squares)
    return tuple(square / total for square in squares)
