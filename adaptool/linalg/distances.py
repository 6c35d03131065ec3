"""Two products of thin factors: how large they are, how far apart, which way they point.

The sum over all elements of (L1 R1) * (L2 R2) is the sum over the r x r entries of
(L1^T L2) * (R1 R2^T): matrix products, at a fraction of the cost of QR decompositions. It is wrong
by about eps (sum_i |l_i| |r_i|)^2; where the result is small beside that, the core decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.linalg.factored import core, inner

if TYPE_CHECKING:
    import torch

    Product = tuple[torch.Tensor, torch.Tensor]

# Of r orthogonal terms of one size the share is 1 / r: up to rank 1000 the core is not needed.
ENOUGH = 1e-3
# |a - b|^2 as |a|^2 + |b|^2 - 2 <a, b> loses two digits here, more for what is closer.
APART = 1e-2


@dataclass(frozen=True, slots=True)
class Distance:
    """Sums over all elements: <a, b>, |a|^2, |b|^2, |a - b|^2."""

    inner: float
    first: float
    second: float
    difference: float


def distance(one: Product, other: Product) -> Distance:
    """Compare (out, r) @ (r, in) with (out, s) @ (s, in), in float64; NaN where one is not finite.

    The difference of equal finite factors is exactly 0, whatever ranks of zeros one of them has
    besides.
    """
    import torch

    if one[0].shape[1] != other[0].shape[1]:
        one, other = _without_zeros(*one), _without_zeros(*other)
    first = norm_squared(*one)
    if all(torch.equal(mine, yours) for mine, yours in zip(one, other, strict=True)):
        return Distance(first, first, first, first - first)
    second, common = norm_squared(*other), inner(*one, *other)
    apart = first + second - 2 * common
    if not apart > APART * (first + second):
        apart = norm_squared(*_difference(one, other))
    return Distance(common, first, second, apart)


def _without_zeros(left: torch.Tensor, right: torch.Tensor) -> Product:
    """The factors without ranks of zeros, which adapters padded to one rank have (MLX)."""
    finite = left.isfinite().all(dim=0) & right.isfinite().all(dim=1)
    empty = finite & ((left == 0).all(dim=0) | (right == 0).all(dim=1))
    return left[:, ~empty], right[~empty]


def norm_squared(left: torch.Tensor, right: torch.Tensor) -> float:
    """|left @ right|^2 in float64; NaN where a factor is not finite."""
    import torch

    outer, inward = left.T @ left, right @ right.T
    found = float((outer * inward).sum())
    scale = float((outer.diagonal() * inward.diagonal()).sqrt().sum()) ** 2
    if not math.isfinite(scale) or not math.isfinite(found):
        return math.nan
    if found >= ENOUGH * scale:
        return found
    return float(torch.linalg.vector_norm(core(left, right))) ** 2


def _difference(one: Product, other: Product) -> Product:
    """A product that is L1 R1 - L2 R2.

    At equal ranks as [L1 - L2, L2] [R1; R1 - R2]: what two nearly equal products share is gone
    before any rounding.
    """
    import torch

    (left, right), (other_left, other_right) = one, other
    if left.shape == other_left.shape:
        lefts, rights = (left - other_left, other_left), (right, right - other_right)
    else:
        lefts, rights = (left, -other_left), (right, other_right)
    return torch.cat(lefts, dim=1), torch.cat(rights, dim=0)
