"""Blocks of rotations."""

from __future__ import annotations

import pytest
import torch

from adaptool.tuners.rotations import cayley, skew_of, skew_part, turned


def test_cayley_gives_rotations() -> None:
    """R R^T = I and no reflection, whatever the numbers are."""
    drawn = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = cayley(skew_part(drawn))
    identity = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    assert torch.allclose(found @ found.transpose(1, 2), identity, atol=1e-12)
    assert torch.allclose(torch.linalg.det(found), torch.ones(3, dtype=torch.float64))


def test_upper_triangle_is_read_row_by_row() -> None:
    """And its mirror image has the other sign."""
    found = skew_of(torch.tensor([[1.0, 2.0, 3.0]]), 3)
    wanted = torch.tensor([[[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]]])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("shared", [False, True])
def test_weights_are_turned_block_by_block(shared: bool) -> None:
    """As by the whole block-diagonal matrix."""
    draw = torch.Generator().manual_seed(2)
    weights = torch.randn(5, 12, generator=draw, dtype=torch.float64)
    blocks = torch.randn(1 if shared else 3, 4, 4, generator=draw, dtype=torch.float64)
    whole = torch.block_diag(*(blocks.expand(3, 4, 4)))
    assert torch.allclose(turned(weights, blocks), weights @ whole.T)
