"""Low-rank algebra on factors: everything happens on the r x r core, never on out x in.

With thin QR decompositions left = Q1 R1 and right^T = Q2 R2, the product left @ right is
Q1 (R1 R2^T) Q2^T: it has the norm and the singular values of the core R1 R2^T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def core(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """R1 R2^T in float64, at most (r, r); left is (out, r), right is (r, in)."""
    import torch

    _, upper_left = torch.linalg.qr(left.double(), mode="r")
    _, upper_right = torch.linalg.qr(right.double().T, mode="r")
    product: torch.Tensor = upper_left @ upper_right.T
    return product


def singular_values(left: torch.Tensor, right: torch.Tensor) -> tuple[float, ...]:
    """The singular values of left @ right, largest first: min(out, r) or min(in, r) of them."""
    import torch

    return tuple(torch.linalg.svdvals(core(left, right)).tolist())


def effective_rank(values: Sequence[float]) -> float:
    """exp(-sum p log p) with p the squared singular values over their sum; 0 where all are 0.

    It is k for k equal singular values. (Roy and Vetterli 2007 take the values themselves for p;
    with squares p is the share of energy, which truncation is judged by.)
    """
    shares = energy_shares(values)
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0)) if shares else 0.0


def energy_shares(values: Sequence[float]) -> tuple[float, ...]:
    """Each squared singular value over the sum of them; empty where all are 0."""
    largest = max(values, default=0.0)
    if largest == 0:
        return ()
    # Scaled first: squares of very large or small values leave the range of float64.
    squares = [(value / largest) ** 2 for value in values]
    total = math.fsum(squares)
    return tuple(square / total for square in squares)


def top_subspace(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """The `rank` leading eigenvectors of a symmetric (n, n) matrix, as columns (n, rank).

    Of a Gram matrix W^T W they are the leading right singular vectors of W: in float64 right to
    about 1e-8 of the largest singular value.
    """
    import torch

    _, vectors = torch.linalg.eigh(gram)
    leading: torch.Tensor = vectors[:, gram.shape[0] - min(rank, gram.shape[0]) :]
    return leading.contiguous()
