"""Factors of a matrix given tile by tile, against the full SVD of the whole matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from adaptool.errors import InputError
from adaptool.linalg import streamed
from adaptool.linalg.streamed import Streamed, Tiles, leading

SHAPES = [(30, 20), (20, 30), (25, 25), (1, 40), (40, 1), (63, 7)]


def random_matrix(out: int, inner: int, decay: float = 1.0) -> torch.Tensor:
    """A matrix with singular values decay**i."""
    generator = torch.Generator().manual_seed(out * 1000 + inner)
    k = min(out, inner)
    left = torch.linalg.qr(torch.randn(out, k, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(inner, k, generator=generator, dtype=torch.float64)).Q
    return (left * decay ** torch.arange(k, dtype=torch.float64)) @ right.T


def tiled(matrix: torch.Tensor, *heights: int) -> Tiles:
    """The matrix as tiles of these heights, the last one repeated."""

    def tiles() -> Iterator[tuple[slice, torch.Tensor]]:
        start, left = 0, list(heights)
        while start < len(matrix):
            height = left.pop(0) if len(left) > 1 else left[0]
            yield slice(start, min(start + height, len(matrix))), matrix[start : start + height]
            start += height

    return tiles


def best_error(matrix: torch.Tensor, rank: int) -> float:
    """Eckart and Young: the least relative error of that rank."""
    values = torch.linalg.svdvals(matrix)
    return float(torch.linalg.norm(values[rank:]) / torch.linalg.norm(values))


def measured(matrix: torch.Tensor, found: Streamed) -> float:
    """The relative error of the factors themselves."""
    rest = matrix - found.left @ found.right
    return float(torch.linalg.norm(rest) / torch.linalg.norm(matrix))


@pytest.fixture
def small_gram(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Every matrix counts as large: the other way is taken unless exact is asked for."""
    return lambda: monkeypatch.setattr(streamed, "GRAM_SIDE", 0)


@pytest.mark.parametrize("heights", [(7,), (1,), (3, 11, 2), (100,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_gives_the_best_factors(shape: tuple[int, int], heights: tuple[int, ...]) -> None:
    """Nearest of all factors of the rank, for ragged tiles and either side the smaller."""
    matrix = random_matrix(*shape, decay=0.7)
    for rank in {1, min(shape) // 2 or 1, min(shape)}:
        found = leading(tiled(matrix, *heights), shape, rank=rank)
        assert found.exact
        assert measured(matrix, found) == pytest.approx(best_error(matrix, rank), abs=1e-12)
        assert found.relative_error == pytest.approx(measured(matrix, found), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_all_singular_values(shape: tuple[int, int]) -> None:
    """By Gram all of them are known."""
    matrix = random_matrix(*shape, decay=0.8)
    found = leading(tiled(matrix, 4), shape, rank=2 if min(shape) > 1 else 1)
    expected = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(torch.tensor(found.values, dtype=torch.float64), expected)


def test_rows_held_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide matrix that does not fit is passed over once for each block of its rows."""
    matrix = random_matrix(23, 40, decay=0.9)
    whole = leading(tiled(matrix, 4), (23, 40), rank=6)
    monkeypatch.setattr(streamed, "_HELD_ELEMENTS", 40 * 5)
    for height in (1, 3, 5, 7, 23):
        found = leading(tiled(matrix, height), (23, 40), rank=6)
        torch.testing.assert_close(
            found.left @ found.right, whole.left @ whole.right, rtol=0, atol=1e-14
        )


def test_error_far_below_one_is_measured() -> None:
    """Noise of 1e-11 beside a low rank is reported as such: |M|^2 minus squares cannot see it."""
    noise = random_matrix(40, 30)
    matrix = random_matrix(40, 30, decay=0.5)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = (left[:, :3] * values[:3]) @ right[:3] + 1e-11 * noise
    found = leading(tiled(matrix, 9), (40, 30), rank=3)
    assert found.relative_error == pytest.approx(best_error(matrix, 3), rel=1e-3)


def test_rank_above_the_matrix_is_filled_with_zeros() -> None:
    """The factors have the rank asked for, as every module of an adapter must."""
    matrix = random_matrix(5, 8, decay=0.6)
    found = leading(tiled(matrix, 2), (5, 8), rank=9)
    assert found.left.shape == (5, 9)
    assert found.right.shape == (9, 8)
    assert not found.left[:, 5:].any()
    torch.testing.assert_close(found.left @ found.right, matrix)
    assert found.relative_error < 1e-14


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_rank_deficient_matrix_is_found_whole(shape: tuple[int, int]) -> None:
    """Factors of a larger rank than the matrix's reproduce it."""
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(shape[0], 3, generator=generator, dtype=torch.float64)
    matrix = left @ torch.randn(3, shape[1], generator=generator, dtype=torch.float64)
    found = leading(tiled(matrix, 8), shape, rank=6)
    torch.testing.assert_close(found.left @ found.right, matrix)
    assert found.relative_error < 1e-13
    assert leading(tiled(matrix, 8), shape, energy=1.0).left.shape[1] == 3


@pytest.mark.parametrize("exact", [True, False])
def test_zero_matrix_has_zero_factors_and_no_error(exact: bool, small_gram: Callable) -> None:
    """Nothing to lose."""
    small_gram()
    zeros = torch.zeros(60, 50)
    found = leading(tiled(zeros, 16), (60, 50), rank=2, exact=exact)
    assert not (found.left @ found.right).any()
    assert found.relative_error == 0
    assert leading(tiled(zeros, 16), (60, 50), energy=0.9, exact=exact).left.shape == (60, 1)


@pytest.mark.parametrize("shape", [(200, 150), (150, 200)])
@pytest.mark.parametrize("decay", [0.9, 0.97])
def test_iteration_comes_near_the_best(
    shape: tuple[int, int], decay: float, small_gram: Callable
) -> None:
    """Subspace iteration: the error is within a thousandth of the least, and is the one stated."""
    small_gram()
    matrix = random_matrix(*shape, decay=decay)
    found = leading(tiled(matrix, 64), shape, rank=12)
    assert not found.exact
    assert len(found.values) == 12 + streamed.OVERSAMPLING
    assert found.relative_error == pytest.approx(measured(matrix, found), rel=1e-9)
    least = best_error(matrix, 12)
    assert least <= found.relative_error * (1 + 1e-12) <= least * 1.001


def test_iteration_depends_on_the_seed_only(small_gram: Callable) -> None:
    """Same seed, same factors; torch's own generator is neither read nor moved."""
    small_gram()
    matrix = random_matrix(100, 90)
    state = torch.random.get_rng_state()
    first = leading(tiled(matrix, 64), (100, 90), rank=4, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(3)
    second = leading(tiled(matrix, 64), (100, 90), rank=4, seed=7)
    assert torch.equal(first.left, second.left)
    assert not torch.equal(first.left, leading(tiled(matrix, 64), (100, 90), rank=4, seed=8).left)


def test_exact_takes_the_gram_matrix_at_any_size(small_gram: Callable) -> None:
    """A flat spectrum is where iteration is worst: exact is exact."""
    small_gram()
    matrix = random_matrix(90, 120, decay=0.999)
    found = leading(tiled(matrix, 10), (90, 120), rank=5, exact=True)
    assert found.exact
    assert found.relative_error == pytest.approx(best_error(matrix, 5), rel=1e-12)


@pytest.mark.parametrize("energy", [0.2, 0.5, 0.9, 0.99, 0.999999])
@pytest.mark.parametrize("exact", [True, False])
def test_energy_takes_the_least_rank_that_keeps_it(
    energy: float, exact: bool, small_gram: Callable
) -> None:
    """One rank less would lose more than is allowed."""
    small_gram()
    matrix = random_matrix(260, 200, decay=0.9)
    found = leading(tiled(matrix, 33), (260, 200), energy=energy, exact=exact)
    rank = found.left.shape[1]
    assert found.relative_error**2 <= 1 - energy
    assert rank == 1 or best_error(matrix, rank - 1) ** 2 > 1 - energy


def test_energy_of_a_flat_spectrum_falls_back_to_gram(small_gram: Callable) -> None:
    """Where no small subspace has the energy, the Gram matrix is taken after all."""
    small_gram()
    matrix = random_matrix(150, 140)
    found = leading(tiled(matrix, 50), (150, 140), energy=0.95)
    assert found.exact
    assert found.left.shape[1] == 133


def test_half_precision_tiles_are_taken_as_they_are() -> None:
    """The arithmetic is float64 whatever the tiles are."""
    matrix = random_matrix(30, 20, decay=0.8).to(torch.bfloat16)
    found = leading(tiled(matrix, 7), (30, 20), rank=5)
    assert found.relative_error == pytest.approx(best_error(matrix.double(), 5), rel=1e-9)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_values_that_are_not_finite_are_refused(
    value: float, exact: bool, small_gram: Callable
) -> None:
    """An error of ours, not LAPACK's."""
    small_gram()
    matrix = random_matrix(30, 20)
    matrix[4, 5] = value
    with pytest.raises(InputError, match="not finite"):
        leading(tiled(matrix, 7), (30, 20), rank=2, exact=exact)
