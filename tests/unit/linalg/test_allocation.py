"""Rules for ranks, and one budget for all modules."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptool.linalg.allocation import (
    Share,
    allotted,
    rank_for_energy,
    rank_for_error,
    rank_for_ratio,
    tails,
)

SQUARES = (16.0, 9.0, 4.0, 1.0)


@pytest.mark.parametrize(
    ("share", "rank"), [(0.5, 1), (16 / 30, 1), (0.54, 2), (25 / 30, 2), (0.99, 4), (1.0, 4)]
)
def test_energy_takes_the_least_rank_that_keeps_the_share(share: float, rank: int) -> None:
    """30 in all: 16, 25, 29 and 30 are kept by the ranks 1 to 4."""
    assert rank_for_energy(SQUARES, share) == rank


@pytest.mark.parametrize(("error", "rank"), [(0.0, 4), (0.18, 4), (0.19, 3), (0.5, 2), (0.99, 1)])
def test_error_is_relative_and_of_the_norm(error: float, rank: int) -> None:
    """sqrt(1/30) = 0.183, sqrt(5/30) = 0.408, sqrt(14/30) = 0.683."""
    assert rank_for_error(SQUARES, error) == rank


@pytest.mark.parametrize(("ratio", "rank"), [(1.0, 1), (0.75, 2), (0.5, 3), (0.26, 3), (0.25, 4)])
def test_ratio_compares_singular_values(ratio: float, rank: int) -> None:
    """Singular values 4, 3, 2, 1."""
    assert rank_for_ratio(SQUARES, ratio) == rank


def test_zeros_need_no_rank() -> None:
    """Nothing to keep."""
    assert rank_for_energy((0.0, 0.0), 0.9) == 0
    assert rank_for_error((), 0.1) == 0
    assert rank_for_ratio((0.0,), 0.5) == 0


def test_rounding_noise_needs_no_rank() -> None:
    """energy 1 of a delta of rank 1 with 1e-17 of noise is rank 1."""
    assert rank_for_energy((1.0, 1e-34), 1.0) == 1


spectra = st.lists(st.floats(0, 100), min_size=1, max_size=5).map(
    lambda values: tuple(sorted(values, reverse=True))
)
shares = st.lists(
    st.builds(
        lambda squares, cost: Share(squares, cost, 1, len(squares)), spectra, st.integers(1, 9)
    ),
    min_size=1,
    max_size=4,
)


def _error(found: list[Share], ranks: tuple[int, ...] | list[int]) -> float:
    return math.fsum(tails(s.squares)[r] for s, r in zip(found, ranks, strict=True))


@given(shares, st.integers(0, 120))
def test_allotment_keeps_to_the_budget_and_is_near_the_best(
    found: list[Share], budget: int
) -> None:
    """Never over the budget; as good as the best allotment at the greedy step's granularity.

    The best is found by trying every allotment. Greedy may miss it by what the one rank that did
    not fit would have cut, which is at most one square.
    """
    least = sum(share.cost for share in found)
    if budget < least:
        return
    ranks = allotted(found, budget)
    assert sum(s.cost * r for s, r in zip(found, ranks, strict=True)) <= budget
    every = itertools.product(*(range(1, share.highest + 1) for share in found))
    fitting = [
        ranks
        for ranks in every
        if sum(s.cost * r for s, r in zip(found, ranks, strict=True)) <= budget
    ]
    best = min(_error(found, ranks) for ranks in fitting)
    worst_square = max(square for share in found for square in share.squares)
    assert _error(found, ranks) <= best + 9 * worst_square + 1e-9


@given(spectra, spectra)
def test_equal_costs_give_the_optimum(left: tuple[float, ...], right: tuple[float, ...]) -> None:
    """With one cost for every rank, greedy is optimal for every budget."""
    found = [Share(left, 1, 1, len(left)), Share(right, 1, 1, len(right))]
    for budget in range(2, len(left) + len(right) + 1):
        pairs = itertools.product(range(1, len(left) + 1), range(1, len(right) + 1))
        best = min(_error(found, pair) for pair in pairs if sum(pair) <= budget)
        assert _error(found, allotted(found, budget)) == pytest.approx(best, abs=1e-12)


def test_a_uniform_rank_is_never_better_than_the_allotment() -> None:
    """Even spectra with costs that do not add up: the uniform rank is taken where it serves."""
    found = [Share((4.0, 4.0), 3, 1, 2), Share((4.0, 4.0), 3, 1, 2), Share((5.0, 5.0), 4, 1, 2)]
    for budget in range(10, 21):
        ranks = allotted(found, budget)
        uniform = [2, 2, 2] if budget >= 20 else [1, 1, 1]
        assert _error(found, ranks) <= _error(found, uniform)
