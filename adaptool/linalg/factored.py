"""A product of two thin factors: everything happens on the r x r core, never on out x in.

With thin QR decompositions left = Q1 R1 and right^T = Q2 R2, the product left @ right is
Q1 (R1 R2^T) Q2^T: it has the norm and the singular values of the core R1 R2^T, and the core's
truncated SVD gives the product's best approximation of that rank (Eckart and Young 1936).
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Thin:
    """A thin QR decomposition whose Q is never formed: products with it cost a third.

    `upper` is R, (k, n) with k = min(m, n) for a matrix (m, n).
    """

    upper: torch.Tensor
    reflectors: torch.Tensor
    tau: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Thin:
        """Decompose `matrix`."""
        import torch

        packed, tau = torch.geqrf(matrix)
        size = min(matrix.shape)
        return cls(packed[:size].triu(), packed[:, :size], tau)

    def times(self, columns: torch.Tensor) -> torch.Tensor:
        """Q @ columns, (m, n) from (k, n)."""
        import torch

        spread = columns.new_zeros((self.reflectors.shape[0], columns.shape[1]))
        spread[: columns.shape[0]] = columns
        product: torch.Tensor = torch.ormqr(self.reflectors, self.tau, spread)
        return product


@dataclass(frozen=True, slots=True)
class Truncated:
    """The best approximation of a product at a rank, as balanced factors, in float64.

    left (out, k) and right (k, in) carry sqrt(S) each; `values` are all singular values of the
    product, largest first. k is the rank asked for, whatever the product's own rank is: what is
    missing is filled with zeros.
    """

    left: torch.Tensor
    right: torch.Tensor
    values: tuple[float, ...]


def truncated(left: torch.Tensor, right: torch.Tensor, rank: int) -> Truncated:
    """left (out, r) @ right (r, in) at rank `rank`, in time O((out + in) r^2)."""
    import torch

    if not left.shape[1]:
        nothing = left.new_zeros((left.shape[0], rank), dtype=torch.float64)
        return Truncated(nothing, right.new_zeros((rank, right.shape[1]), dtype=torch.float64), ())
    thin_left, thin_right = Thin.of(left.double()), Thin.of(right.double().T)
    u, values, v = torch.linalg.svd(thin_left.upper @ thin_right.upper.T, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    new_left = left.new_zeros((left.shape[0], rank), dtype=torch.float64)
    new_right = right.new_zeros((rank, right.shape[1]), dtype=torch.float64)
    new_left[:, :kept] = thin_left.times(u[:, :kept] * root)
    new_right[:kept] = thin_right.times(v[:kept].T * root).T
    return Truncated(new_left, new_right, tuple(values.tolist()))


def inner(
    left: torch.Tensor, right: torch.Tensor, other_left: torch.Tensor, other_right: torch.Tensor
) -> float:
    """<left @ right, other_left @ other_right>, the sum over all elements, in float64."""
    across = left.double().T @ other_left.double()
    along = right.double() @ other_right.double().T
    return float((across * along).sum())


def top_subspace(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """The `rank` leading eigenvectors of a symmetric (n, n) matrix, as columns (n, rank).

    Of a Gram matrix W^T W they are the leading right singular vectors of W: in float64 right to
    about 1e-8 of the largest singular value.
    """
    import torch

    _, vectors = torch.linalg.eigh(gram)
    leading: torch.Tensor = vectors[:, gram.shape[0] - min(rank, gram.shape[0]) :]
    return leading.contiguous()
