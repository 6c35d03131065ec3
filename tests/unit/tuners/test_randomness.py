"""What is drawn again is what torch drew."""

from __future__ import annotations

import pytest
import torch

from adaptool.tuners.randomness import drawn_places


@pytest.mark.parametrize("seed", [0, 777, 2024])
@pytest.mark.parametrize(
    ("total", "count"),
    [(1, 1), (40, 40), (40, 2), (41, 1), (1000, 61), (1000, 62), (65_537, 999), (1_000_003, 2592)],
)
def test_places_are_the_first_of_torchs_permutation(seed: int, total: int, count: int) -> None:
    """However many of them are asked for, and of however many."""
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randperm(total, generator=generator)[:count]
    assert torch.equal(drawn_places(seed, total, count), expected)
