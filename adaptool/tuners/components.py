"""Singular components of a base's weight, for tuners that take some away or work on them.

They follow from W alone: with V the eigenvectors of W^T W, the part of W along some of them is
W V V^T, and likewise with W W^T where W has more columns than rows. In float64, whatever W is in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.linalg.factored import top_subspace

if TYPE_CHECKING:
    import torch


def bottom(weights: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` smallest singular components of W, in W's dtype."""
    wide = weights.double()
    if wide.shape[0] < wide.shape[1]:
        directions = top_subspace(-(wide @ wide.T), count)
        return (directions @ (directions.T @ wide)).to(weights.dtype)
    directions = top_subspace(-(wide.T @ wide), count)
    return ((wide @ directions) @ directions.T).to(weights.dtype)
