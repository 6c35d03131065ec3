"""What the methods on factors share: stacking, truncating, and the error of a product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.method import Combined, Factored
from adaptool.linalg.factored import core, truncated

if TYPE_CHECKING:
    import torch

Product = tuple["torch.Tensor", "torch.Tensor"]


def stacked(parts: Sequence[Factored]) -> Product:
    """[w_1 B_1 .. w_T B_T] and [A_1; ..; A_T]: the weighted sum of the deltas as one product."""
    import torch

    left = torch.cat([part.weight * part.left.double() for part in parts], dim=1)
    return left, torch.cat([part.right.double() for part in parts], dim=0)


def finished(merged: Product, wanted: Product, rank: int | None) -> Combined:
    """`merged`, truncated to `rank` where one is given, with its error against `wanted`.

    A rank above that of the product is filled with zeros, so that all modules have the one asked
    for.
    """
    best, error = merged, 0.0
    if rank is not None and rank < merged[0].shape[1]:
        cut = truncated(*merged, rank)
        best, error = (cut.left, cut.right), tail_share(cut.values, rank)
    elif rank is not None:
        best = padded(*merged, rank)
    if merged is wanted:
        return Combined(*best, error, exact=best[0].shape[1] >= merged[0].shape[1])
    return Combined(*best, relative_error(wanted, best), exact=False)


def tail_share(values: Sequence[float], kept: int) -> float:
    """Norm of the singular values after the first `kept` over the norm of all; 0 where all are 0.

    Both are sums of squares: nothing cancels.
    """
    cut = math.hypot(*values[kept:])
    return cut / math.hypot(*values) if cut else 0.0


def relative_error(wanted: Product, found: Product) -> float:
    """|wanted - found|_F / |wanted|_F of two products, measured on their factors.

    The difference is itself a product, so there is no cancellation of squares: errors down to
    about 1e-15 are real. Infinite where `wanted` is 0 and `found` is not.
    """
    import torch

    left = torch.cat([wanted[0].double(), -found[0].double()], dim=1)
    right = torch.cat([wanted[1].double(), found[1].double()], dim=0)
    distance = torch.linalg.norm(core(left, right)).item()
    norm = torch.linalg.norm(core(*wanted)).item()
    if norm == 0:
        return math.inf if distance else 0.0
    return float(distance / norm)


def padded(left: torch.Tensor, right: torch.Tensor, rank: int) -> Product:
    """left (out, k), right (k, in) with columns and rows of zeros up to `rank`."""
    import torch

    missing = rank - left.shape[1]
    if missing <= 0:
        return left, right
    return (
        torch.cat([left, left.new_zeros((left.shape[0], missing))], dim=1),
        torch.cat([right, right.new_zeros((missing, right.shape[1]))], dim=0),
    )
