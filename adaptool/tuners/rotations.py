"""Orthogonal matrices made of numbers without constraint, and weights turned by blocks of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def skew_part(matrices: torch.Tensor) -> torch.Tensor:
    """(M - M^T) / 2 of (blocks, b, b)."""
    return 0.5 * (matrices - matrices.transpose(1, 2))


def skew_of(upper: torch.Tensor, size: int) -> torch.Tensor:
    """(blocks, b, b) whose elements above the diagonal are (blocks, b (b - 1) / 2), row by row."""
    import torch

    rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
    matrices = upper.new_zeros(len(upper), size, size)
    matrices[:, rows, columns] = upper
    return matrices - matrices.transpose(1, 2)


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """(I - Q) (I + Q)^-1 of skew-symmetric (blocks, b, b)."""
    import torch

    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    solved: torch.Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return solved


def within(matrices: torch.Tensor, eps: float) -> torch.Tensor:
    """Each of (blocks, b, b) shrunk to a Frobenius norm of eps / sqrt(blocks) at most."""
    limit = eps / math.sqrt(len(matrices))
    norms: torch.Tensor = matrices.norm(dim=(1, 2), keepdim=True)
    return matrices * norms.clamp_min(limit).reciprocal().mul(limit)


def cayley_series(skew: torch.Tensor, count: int, last: float) -> torch.Tensor:
    """I + 2 Q + 2 Q^2 + ... + `last` Q^(count - 1) of (..., b, b), as PEFT cuts (I + Q) (I - Q)^-1.

    Where the last term counts half, and there are more than two, it is a third power at least.
    """
    import torch

    total = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew).clone()
    if count == 1:
        return total
    total.add_(skew, alpha=2.0)
    if count == 2:
        return total
    power = skew @ skew
    total.add_(power, alpha=2.0)
    highest = max(3, count - 1) if last == 1.0 else count - 1
    for exponent in range(3, highest + 1):
        power = power @ skew
        total.add_(power, alpha=last if exponent == highest else 2.0)
    return total


def turned(weights: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """W blockdiag(R)^T of W (rows, n); `blocks` (n / b, b, b), or (1, b, b) for all of them."""
    import torch

    size = blocks.shape[-1]
    cut = weights.reshape(len(weights), -1, size)
    shared = blocks.expand(cut.shape[1], size, size)
    return torch.einsum("okb,kcb->okc", cut, shared).reshape(weights.shape)
