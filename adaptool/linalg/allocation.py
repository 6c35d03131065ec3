"""How many singular values to keep: rules for one module, and one budget for all of them.

`squares` are squared singular values, largest first; the squared error of keeping k of them is the
sum of the others (Eckart and Young 1936). The rules are kohya's `resize_lora.py` under our names:
its `sv_fro p` is `error = sqrt(1 - p^2)`, `sv_ratio p` is `ratio = 1 / p`; `energy` sums squares,
where its `sv_cumulative` sums the values themselves.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


def tails(squares: Sequence[float]) -> list[float]:
    """`tails[k]`: the sum of all but the first k squares, k from 0 to their number."""
    sums = [0.0]
    for square in reversed(squares):
        sums.append(sums[-1] + square)
    return sums[::-1]


def rank_for_energy(squares: Sequence[float], share: float) -> int:
    """The least rank that keeps `share` of the sum of squares."""
    left = tails(squares)
    # 1 - share is off by float64's last bit: 1e-15 of the energy is what float32 cannot hold.
    return _first(left, (1.0 - share) * left[0] + 1e-15 * left[0])


def rank_for_error(squares: Sequence[float], error: float) -> int:
    """The least rank whose relative Frobenius error is at most `error`."""
    left = tails(squares)
    return _first(left, error * error * left[0])


def rank_for_ratio(squares: Sequence[float], ratio: float) -> int:
    """How many singular values are at least `ratio` times the largest."""
    least = ratio * ratio * max(squares, default=0.0)
    return sum(square >= least and square > 0 for square in squares)


def _first(left: Sequence[float], allowed: float) -> int:
    # What float64 cannot tell from nothing is nothing: 1e-16 of the norm, squared.
    floor = 1e-32 * left[0]
    return next(k for k, rest in enumerate(left) if rest <= max(allowed, floor))


@dataclass(frozen=True, slots=True)
class Share:
    """What one module brings to an allotment: its squares, and what each rank costs.

    Ranks lie in [lowest, highest].
    """

    squares: Sequence[float]
    cost: int
    lowest: int
    highest: int


def allotted(shares: Sequence[Share], budget: int) -> list[int]:
    """Ranks of least total squared error within `budget`, a rank at a time where it cuts most.

    Squares fall within a module, so taking the largest square per cost first is optimal whenever
    the budget is used up; a module whose next rank does not fit is passed over. Where one rank for
    all serves better, that is taken. The lowest ranks are given whatever the budget.
    """
    greedy = _greedy(shares, budget)
    uniform = _uniform(shares, budget)
    return min((greedy, uniform), key=lambda ranks: (_error(shares, ranks), sum(ranks)))


def _greedy(shares: Sequence[Share], budget: int) -> list[int]:
    ranks = [share.lowest for share in shares]
    left = budget - _cost(shares, ranks)
    waiting = [_offer(share, place, share.lowest) for place, share in enumerate(shares)]
    heapq.heapify(waiting)
    while waiting:
        gain, place = heapq.heappop(waiting)
        share = shares[place]
        if gain == 0 or share.cost > left or ranks[place] >= share.highest:
            continue
        ranks[place] += 1
        left -= share.cost
        heapq.heappush(waiting, _offer(share, place, ranks[place]))
    return ranks


def _offer(share: Share, place: int, rank: int) -> tuple[float, int]:
    square = share.squares[rank] if rank < len(share.squares) else 0.0
    return -square / share.cost, place


def _uniform(shares: Sequence[Share], budget: int) -> list[int]:
    best = [share.lowest for share in shares]
    for rank in range(1, max((share.highest for share in shares), default=0) + 1):
        ranks = [min(max(rank, share.lowest), share.highest) for share in shares]
        if _cost(shares, ranks) > budget:
            break
        best = ranks
    return best


def _cost(shares: Sequence[Share], ranks: Sequence[int]) -> int:
    return sum(share.cost * rank for share, rank in zip(shares, ranks, strict=True))


def _error(shares: Sequence[Share], ranks: Sequence[int]) -> float:
    return math.fsum(
        tails(share.squares)[min(rank, len(share.squares))]
        for share, rank in zip(shares, ranks, strict=True)
    )
