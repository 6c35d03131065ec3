"""The low-rank core against a full SVD of the product, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from adaptool.linalg.factored import core, singular_values
from adaptool.linalg.spectrum import effective_rank, energy_shares

SHAPES = [(7, 3, 11), (11, 3, 7), (40, 8, 40), (5, 9, 30), (30, 9, 5), (4, 9, 4), (6, 1, 1)]


def factors(out: int, rank: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random factors, float64."""
    generator = torch.Generator().manual_seed(out * 100 + inner)
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return left, torch.randn(rank, inner, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("out", "rank", "inner"), SHAPES)
def test_singular_values_are_those_of_the_product(out: int, rank: int, inner: int) -> None:
    """The core has the product's singular values, also where the rank exceeds an axis."""
    left, right = factors(out, rank, inner)
    expected = torch.linalg.svd(left @ right, full_matrices=False).S
    found = torch.tensor(singular_values(left, right), dtype=torch.float64)
    assert len(found) == min(out, rank, inner)
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-12, atol=1e-12)
    assert bool((expected[len(found) :] < 1e-12).all())


@pytest.mark.parametrize(("out", "rank", "inner"), SHAPES)
def test_core_has_the_norm_of_the_product(out: int, rank: int, inner: int) -> None:
    """Norms are taken on at most r x r numbers."""
    left, right = factors(out, rank, inner)
    found = core(left, right)
    assert found.shape == (min(out, rank), min(inner, rank))
    expected = torch.linalg.norm(left @ right).item()
    assert torch.linalg.norm(found).item() == pytest.approx(expected, rel=1e-13)


def test_small_singular_values_survive() -> None:
    """QR keeps what a Gram matrix would square away: values a billion times smaller."""
    left, right = (
        torch.linalg.qr(each)[0] for each in (factors(30, 3, 1)[0], factors(20, 3, 1)[0])
    )
    wanted = torch.tensor([1.0, 1e-5, 1e-9], dtype=torch.float64)
    assert singular_values(left * wanted, right.T) == pytest.approx(wanted.tolist(), rel=1e-6)


def test_factors_in_half_precision_are_taken_as_they_are() -> None:
    """Whatever dtype the factors have, the algebra is float64."""
    left, right = (each.to(torch.bfloat16) for each in factors(9, 2, 6))
    expected = torch.linalg.svd(left.double() @ right.double()).S[:2]
    assert singular_values(left, right) == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_effective_rank_counts_equal_values(count: int) -> None:
    """k equal singular values have effective rank k, whatever follows them is zero."""
    assert effective_rank([3.0] * count + [0.0] * 4) == pytest.approx(count)


def test_effective_rank_is_exp_of_entropy_of_energy() -> None:
    """With energies 0.8 and 0.2: exp(-(0.8 log 0.8 + 0.2 log 0.2))."""
    expected = math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert effective_rank([2.0, 1.0]) == pytest.approx(expected)


def test_zero_delta_has_effective_rank_zero() -> None:
    """Nothing has no directions."""
    assert effective_rank([0.0, 0.0]) == 0.0
    assert effective_rank([]) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_energy_does_not_depend_on_scale(scale: float) -> None:
    """Squares that would leave float64's range do not."""
    assert energy_shares([2 * scale, scale]) == pytest.approx((0.8, 0.2))
