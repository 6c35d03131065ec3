"""Deltas as products of thin factors, and what two of them have in common.

Everything happens on the factors: no matrix of out x in is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, cast

from adaptool.engine.factors import load
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.linalg.distances import distance, norm_squared
from adaptool.linalg.factored import inner
from adaptool.model.adapter import Delta, Form
from adaptool.model.tuner import LowRank
from adaptool.model.values import Comparison
from adaptool.tuners import tuners

if TYPE_CHECKING:
    import torch

    Product = tuple[torch.Tensor, torch.Tensor]


CPU = "cpu"


def products(delta: Delta, device: torch.device | str = CPU) -> list[Product] | None:
    """The unscaled delta as (out, r) and (r, in) in float64, a pair for each stacked matrix.

    A vector is a product of rank 1. None where the delta is no product of thin factors.
    """
    tuner = tuners()[delta.tuner]
    vector = tuner.DECLARATION.additive and delta.terms.form is Form.VECTOR
    if not tuner.DECLARATION.low_rank and not (vector and len(delta.roles) == 1):
        return None
    factors = {role: _wide(load(ref).to(device)) for role, ref in delta.roles.items()}
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
    """|scaling * product|^2 over all pairs; NaN where one is not finite."""
    return scaling**2 * sum(norm_squared(left, right) for left, right in pairs)


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


def compare(one: Delta, other: Delta, device: torch.device | str = CPU) -> Comparison | None:
    """Two scaled deltas of one shape; None where one of them is no product."""
    first, second = products(one, device), products(other, device)
    if first is None or second is None:
        return None
    scale, other_scale = one.terms.scaling, other.terms.scaling
    found = [
        distance((left * scale, right), (other_left * other_scale, other_right))
        for (left, right), (other_left, other_right) in zip(first, second, strict=True)
    ]
    return Comparison(
        inner=sum(part.inner for part in found),
        first=sum(part.first for part in found),
        second=sum(part.second for part in found),
        difference=sum(part.difference for part in found),
    )
