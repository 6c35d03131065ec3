"""Two products compared on their factors, against the full matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch

from adaptool.linalg import distances
from adaptool.linalg.distances import distance, norm_squared

Product = tuple[torch.Tensor, torch.Tensor]


def drawn(seed: int, out: int, rank: int, inner: int) -> Product:
    """Two random factors, float64."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return left, torch.randn(rank, inner, generator=generator, dtype=torch.float64)


def squares(matrix: torch.Tensor) -> float:
    """The sum of squares."""
    return float((matrix * matrix).sum())


SHAPES = [(7, 3, 11, 3), (40, 8, 50, 8), (40, 8, 50, 3), (5, 9, 30, 9), (6, 1, 1, 2)]


@pytest.mark.parametrize(("out", "rank", "inner", "other_rank"), SHAPES)
def test_distance_is_that_of_the_full_matrices(
    out: int, rank: int, inner: int, other_rank: int
) -> None:
    """Inner product, both norms and the difference; ranks may differ or exceed an axis."""
    one, other = drawn(1, out, rank, inner), drawn(2, out, other_rank, inner)
    a, b = one[0] @ one[1], other[0] @ other[1]
    found = distance(one, other)
    assert found.inner == pytest.approx(float((a * b).sum()), rel=1e-11)
    assert found.first == pytest.approx(squares(a), rel=1e-12)
    assert found.second == pytest.approx(squares(b), rel=1e-12)
    assert found.difference == pytest.approx(squares(a - b), rel=1e-11)


@pytest.mark.parametrize("step", [1e-2, 1e-5, 1e-9, 1e-14])
def test_small_difference_keeps_its_digits(step: float) -> None:
    """|a|^2 + |b|^2 - 2 <a, b> would have none left of a difference below 1e-8."""
    left, right = drawn(3, 40, 8, 50)
    moved, _ = drawn(4, 40, 8, 50)
    changed = left + step * moved
    found = distance((left, right), (changed, right))
    expected = squares((changed - left) @ right)
    assert found.difference == pytest.approx(expected, rel=1e-9)


def test_equal_factors_differ_in_nothing() -> None:
    """Exactly 0, and all three sums are one number."""
    pair = drawn(5, 40, 8, 50)
    found = distance(pair, (pair[0].clone(), pair[1].clone()))
    assert found.difference == 0.0
    assert found.inner == found.first == found.second


@pytest.mark.parametrize("zeros", ["left", "both"])
def test_ranks_of_zeros_make_no_difference(zeros: str) -> None:
    """One rank for all modules (MLX): the smaller ones are filled up, and nothing else."""
    left, right = drawn(5, 40, 8, 50)
    more, others = torch.zeros(40, 3, dtype=torch.float64), drawn(6, 40, 3, 50)[1]
    padded = torch.cat([left, more], 1), torch.cat([right, others * (zeros == "left")])
    for one, other in (((left, right), padded), (padded, (left, right))):
        assert distance(one, other).difference == 0.0
    lost = torch.cat([right, torch.full((3, 50), math.nan, dtype=torch.float64)])
    assert math.isnan(distance((left, right), (padded[0], lost)).difference)


@pytest.mark.parametrize("left_over", [1e-3, 1e-6, 1e-9, 0.0])
def test_factors_that_cancel_have_the_norm_of_what_is_left(left_over: float) -> None:
    """[L, L] [R; (d - 1) R] is d L R, though its terms are those of L R."""
    left, right = drawn(6, 40, 8, 50)
    other = (left_over - 1) * right
    found = norm_squared(torch.cat([left, left], dim=1), torch.cat([right, other]))
    expected = squares(left @ (right + other))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-26)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_told_from_the_sums(bad: float, place: int) -> None:
    """In either factor, on either side: NaN, no error of the decomposition."""
    good, broken = drawn(7, 9, 3, 8), drawn(8, 9, 3, 8)
    broken[place][1, 1] = bad
    assert math.isnan(norm_squared(*broken))
    for found in (distance(good, broken), distance(broken, good), distance(broken, broken)):
        assert math.isnan(found.difference)


def test_zeros_are_zero() -> None:
    """An untrained B: no norm, and all of the other side as difference."""
    left, right = drawn(9, 9, 3, 8)
    found = distance((0 * left, right), (left, right))
    assert (found.first, found.inner) == (0.0, 0.0)
    assert found.difference == pytest.approx(squares(left @ right), rel=1e-12)


def test_usual_factors_need_no_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random factors up to a rank of some hundreds: only matrix products are taken."""

    def unexpected(*_: torch.Tensor) -> torch.Tensor:
        message = "a core was taken"
        raise AssertionError(message)

    monkeypatch.setattr(distances, "core", unexpected)
    for rank in (1, 16, 256):
        distance(drawn(10, 400, rank, 300), drawn(11, 400, rank, 300))
