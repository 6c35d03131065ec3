"""Thresholds from histograms of recomputed tiles, against a sort of the whole matrix."""

from __future__ import annotations

import pytest
import torch

from adaptool.combinations.delta_space import ProductDeltas
from adaptool.combinations.method import Factored
from adaptool.combinations.thresholds import kept_count, keys, thresholds


def whole(*matrices: torch.Tensor, height: int = 5) -> ProductDeltas:
    """Deltas that are these very matrices."""
    parts = [Factored(each, torch.eye(each.shape[1]), 1.0, i) for i, each in enumerate(matrices)]
    return ProductDeltas("m", tuple(parts), height)


def random_matrix(seed: int, spread: float = 1.0) -> torch.Tensor:
    """Magnitudes over many orders where `spread` is large."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(37, 23, generator=generator, dtype=torch.float64)
    return draw * 10 ** (spread * torch.randn(37, 23, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("spread", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("density", [0.0001, 0.01, 0.25, 0.5, 0.999])
def test_threshold_is_the_kth_largest_magnitude(density: float, spread: float) -> None:
    """Exactly, as float32."""
    matrices = [random_matrix(1, spread), random_matrix(2, spread)]
    found = thresholds(whole(*matrices), density)
    k = max(1, int(density * 37 * 23))
    for matrix, key in zip(matrices, found, strict=True):
        expected = matrix.abs().float().flatten().sort(descending=True).values[k - 1]
        assert torch.tensor(key, dtype=torch.int32).view(torch.float32) == expected
        assert int((keys(matrix) >= key).sum()) == k


def test_full_density_needs_no_threshold() -> None:
    """Zero keeps everything, zeros included."""
    assert thresholds(whole(random_matrix(1)), 1.0) == (0,)


def test_elements_at_the_threshold_are_all_kept() -> None:
    """Equal magnitudes are not told apart by position: a constant delta loses nothing."""
    matrix = torch.full((10, 10), -0.25, dtype=torch.float64)
    (key,) = thresholds(whole(matrix), 0.3)
    assert bool((keys(matrix) >= key).all())


def test_zero_delta_has_threshold_zero() -> None:
    """And so have deltas with fewer non-zero elements than are kept."""
    matrix = torch.zeros(10, 10, dtype=torch.float64)
    matrix[0, 0] = 1
    assert thresholds(whole(matrix, matrix * 0), 0.5) == (0, 0)


@pytest.mark.parametrize("height", [1, 2, 36, 37, 64])
def test_threshold_does_not_depend_on_tiles(height: int) -> None:
    """Counts are integers."""
    matrix = random_matrix(3)
    assert thresholds(whole(matrix, height=height), 0.4) == thresholds(whole(matrix), 0.4)


@pytest.mark.parametrize(("elements", "density", "count"), [(10, 0.55, 5), (10, 0.01, 1)])
def test_count_is_rounded_down_to_at_least_one(elements: int, density: float, count: int) -> None:
    """As PEFT and mergekit count, but never nothing."""
    assert kept_count(elements, density) == count
