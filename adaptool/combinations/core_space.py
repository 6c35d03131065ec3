"""Core space: the deltas in common bases, where a module is (sum of ranks) squared numbers.

    U_B = left singular vectors of [B_1 .. B_T],  V_A = right singular vectors of [A_1; ..; A_T]
    M_t = U_B^T B_t A_t V_A^T,   D_t = U_B M_t V_A,   merged = U_B f(M_1, .., M_T) V_A

(Panariello et al. 2025, Accurate and Efficient Low-Rank Model Merging in Core Space, arXiv
2509.17786.) Nothing is lost: the bases span every delta. Methods that are made of products and
singular vectors (tsv, iso_c) give the same as on the full matrices.

Element-wise methods (sce) depend on the bases. Two choices make the result a function of the deltas
alone, where the paper's depends on how each delta was split into B and A: every pair is first
balanced (B = U sqrt(S), A = sqrt(S) V of its own SVD), and the bases are singular vectors, not a
QR, so that the order of the adapters does not matter (where singular values coincide the basis is
not unique).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.factor_space import padded, tail_share
from adaptool.combinations.method import Combined, CoreMethod, Cores, Factored, Options, Spectrum
from adaptool.linalg.factored import Truncated, truncated

if TYPE_CHECKING:
    import torch

# Singular values below this share of the largest are float64's rounding, not directions.
NEGLIGIBLE = 1e-12


def merged(parts: Sequence[Factored], method: CoreMethod, options: Options) -> Combined:
    """Active `parts` merged by `method` in core space, truncated to `options.rank`."""
    left, right = _bases(parts)
    found = method.merge(_cores(parts, left, right), options)
    known = len(found.values)
    kept = known if options.rank is None else min(options.rank, known)
    root = found.values[:kept].sqrt()
    new_left, new_right = padded(
        left @ (found.left[:, :kept] * root),
        (root[:, None] * found.right[:kept]) @ right,
        max(1, kept) if options.rank is None else options.rank,
    )
    return Combined(
        new_left, new_right, tail_share(found.values.tolist(), kept), exact=kept == known
    )


def spectrum(core: torch.Tensor) -> Spectrum:
    """The SVD of a core without what is negligible, leading direction first."""
    import torch

    left, values, right = torch.linalg.svd(core, full_matrices=False)
    count = substantial(values)
    return Spectrum(left[:, :count], values[:count], right[:count])


def substantial(values: torch.Tensor, share: float = NEGLIGIBLE) -> int:
    """How many of the singular values, largest first, are above `share` of the largest."""
    return int((values > share * values[:1]).sum())


def _bases(parts: Sequence[Factored]) -> tuple[torch.Tensor, torch.Tensor]:
    """U_B (out, R_out) and V_A (R_in, in)."""
    import torch

    own = [_balanced(part) for part in parts]
    left = torch.linalg.svd(torch.cat([each.left for each in own], dim=1), full_matrices=False)
    right = torch.linalg.svd(torch.cat([each.right for each in own], dim=0), full_matrices=False)
    return left.U[:, : substantial(left.S)], right.Vh[: substantial(right.S)]


def _balanced(part: Factored) -> Truncated:
    return truncated(part.left.double(), part.right.double(), part.right.shape[0])


def _cores(parts: Sequence[Factored], left: torch.Tensor, right: torch.Tensor) -> Cores:
    matrices = tuple(
        (left.T @ part.left.double()) @ (part.right.double() @ right.T) for part in parts
    )
    return Cores(matrices, tuple(part.weight for part in parts), parts[0].shape)
