"""Leading singular directions with the signs that LAPACK gives them on a CPU.

An SVD is unique up to the signs of its directions, and what is trained between U and V depends on
them. So these are float32 on the CPU, whatever the machine has, in the order of operations of the
libraries that trained with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Directions = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def leading(matrix: torch.Tensor, rank: int) -> Directions:
    """U (m, rank), S (rank), V^T (rank, n) of an (m, n) matrix, in float32 on the CPU."""
    import torch

    plain = matrix.to(device="cpu", dtype=torch.float32).contiguous()
    u, values, v = torch.linalg.svd(plain, full_matrices=False)
    return u[:, :rank], values[:rank], v[:rank]


def leading_sketched(matrix: torch.Tensor, rank: int, seed: int, steps: int) -> Directions:
    """The same from a random subspace and `steps` of subspace iteration (Halko et al. 2009).

    Source: torch 2.13, `svd_lowrank`, which draws from the global generator.
    """
    import torch

    plain = matrix.to(device="cpu", dtype=torch.float32).contiguous()
    tall = plain if plain.shape[0] >= plain.shape[1] else plain.mT
    generator = torch.Generator(device="cpu").manual_seed(seed)
    basis = torch.linalg.qr(tall @ torch.randn(tall.shape[1], rank, generator=generator)).Q
    for _ in range(steps):
        basis = torch.linalg.qr(tall.mT @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    u, values, v = torch.linalg.svd(basis.mT @ tall, full_matrices=False)
    u = basis @ u
    return (u, values, v) if tall is plain else (v.mT, values, u.mT)
