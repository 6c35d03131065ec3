"""Deltas as products of thin factors, and what two of them have in common.

Everything happens on the factors: no matrix of out x in is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, cast

from adaptool.engine.factors import load
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.linalg.factored import core, inner
from adaptool.model.adapter import Delta, Form
from adaptool.model.tuner import LowRank
from adaptool.model.values import Comparison
from adaptool.tuners import tuners

if TYPE_CHECKING:
    import torch

    Product = tuple[torch.Tensor, torch.Tensor]


def products(delta: Delta) -> list[Product] | None:
    """The unscaled delta as (out, r) and (r, in) in float64, a pair for each stacked matrix.

    A vector is a product of rank 1. None where the delta is no product of thin factors.
    """
    tuner = tuners()[delta.tuner]
    vector = tuner.DECLARATION.additive and delta.terms.form is Form.VECTOR
    if not tuner.DECLARATION.low_rank and not (vector and len(delta.roles) == 1):
        return None
    factors = {role: _wide(load(ref)) for role, ref in delta.roles.items()}
    if not tuner.DECLARATION.low_rank:
        column = next(iter(factors.values())).reshape(-1, 1)
        return [(column, column.new_ones((1, 1)))]
    terms = delta.terms
    try:
        return [
            cast("LowRank", tuner).product_factors(factors, terms, expert)
            for expert in (range(terms.experts) if terms.experts else (None,))
        ]
    except InputError as error:
        if error.code is Code.UNSUPPORTED:  # a kernel whose groups the delta crosses
            return None
        raise


def _wide(factor: torch.Tensor) -> torch.Tensor:
    """In float64; indices stay whole numbers."""
    return factor.double() if factor.is_floating_point() else factor


def is_finite(pairs: Sequence[Product]) -> bool:
    """Whether every factor is."""
    import torch

    return all(bool(torch.isfinite(factor).all()) for pair in pairs for factor in pair)


def squared(pairs: Sequence[Product], scaling: float) -> float:
    """|scaling * product|^2 over all pairs."""
    if not is_finite(pairs):
        return math.nan
    return scaling**2 * sum(_norm_squared(left, right) for left, right in pairs)


def gram(deltas: Sequence[Delta]) -> tuple[tuple[float, ...], ...] | None:
    """<delta i, delta j> for all i and j, scaled; None where one of them is no product."""
    found = [products(delta) for delta in deltas]
    known = [pairs for pairs in found if pairs is not None]
    if len(known) < len(found):
        return None
    table = [[0.0] * len(known) for _ in known]
    for i, j in combinations_with_replacement(range(len(known)), 2):
        scale = deltas[i].terms.scaling * deltas[j].terms.scaling
        both = zip(known[i], known[j], strict=True)
        table[i][j] = table[j][i] = scale * sum(inner(*one, *other) for one, other in both)
    return tuple(map(tuple, table))


def compare(one: Delta, other: Delta) -> Comparison | None:
    """Two scaled deltas of one shape; None where one of them is no product."""
    first, second = products(one), products(other)
    if first is None or second is None:
        return None
    if not is_finite([*first, *second]):
        return Comparison(math.nan, math.nan, math.nan, math.nan)
    scale, other_scale = one.terms.scaling, other.terms.scaling
    mine, theirs = squared(first, scale), squared(second, other_scale)
    both = list(zip(first, second, strict=True))
    difference = sum(
        _norm_squared(*_difference((left * scale, right), (other_left * other_scale, other_right)))
        for (left, right), (other_left, other_right) in both
    )
    if difference == 0:
        return Comparison(mine, mine, mine, 0.0)
    common = scale * other_scale * sum(inner(*pair, *others) for pair, others in both)
    return Comparison(common, mine, theirs, difference)


def _difference(one: Product, other: Product) -> Product:
    """A product that is B1 A1 - B2 A2.

    At equal ranks as [B1 - B2, B2] [A1; A1 - A2]: what two nearly equal adapters share is gone
    before any rounding, and equal ones give exactly 0.
    """
    import torch

    (left, right), (other_left, other_right) = one, other
    if torch.equal(left, other_left) and torch.equal(right, other_right):
        return left[:, :0], right[:0]
    if left.shape == other_left.shape:
        lefts, rights = (left - other_left, other_left), (right, right - other_right)
    else:
        lefts, rights = (left, -other_left), (right, other_right)
    return torch.cat(lefts, dim=1), torch.cat(rights, dim=0)


def _norm_squared(left: torch.Tensor, right: torch.Tensor) -> float:
    import torch

    return float(torch.linalg.vector_norm(core(left, right)).item()) ** 2
