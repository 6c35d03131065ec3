"""RandLoRA (Albert et al. 2025, arXiv:2502.00987): sums of random bases, scaled on both sides.

W' = W + s B' A'  (or its factors turned over where out < in),   s = alpha / r

With m = min(out, in), M = max(out, in) and n = ceil(m / r) bases: B' (M, n r) is the random
B[:M, :n] and A' (r n, m) is lambda * A * gamma, where lambda is (r, n), A (r, 1, m) and gamma
(n, m). PEFT counts the columns of B' by base first and the rows of A' by rank first, and so do we.
A and B are random, frozen and shared by all layers; with `save_projection=False` they are drawn
again, dense ones in the bfloat16 of a machine that has it. The product has full rank.
Source: PEFT 0.21.2, `randlora/layer.py`, `randlora/model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners import fields, random_bases
from adaptool.tuners.products import LowRankUpdate, product_update

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]

DECLARATION = Declaration(
    title="RandLoRA",
    peft_type="RANDLORA",
    # The projections are stored once more with every module.
    keys={
        "randlora_lambda": "lambda",
        "randlora_gamma": "gamma",
        "randlora_A": "A",
        "randlora_B": "B",
    },
    shared={"randlora_A": "A", "randlora_B": "B"},
    required=frozenset({"lambda", "gamma"}),
    frozen=frozenset({"A", "B"}),
    additive=True,
    low_rank=True,
    sizes_told=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and rank; both sizes are the base's."""
    lambdas, gammas = shapes["lambda"], shapes["gamma"]
    if len(lambdas) != 2 or len(gammas) != 2 or lambdas[1] != gammas[0]:
        message = f"randlora_lambda {list(lambdas)} and randlora_gamma {list(gammas)} must be"
        message += " (r, bases) and (bases, smaller side)"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    rank = fields.whole(config, "r")
    if rank != lambdas[0]:
        message = f"the config gives rank {rank}, the tensors have rank {lambdas[0]}"
        hint = "the scale would be wrong by their ratio: correct r"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r", hint=hint)
    conventions: dict[str, Any] = {"smaller": gammas[1]}
    stored = {"A", "B"} & shapes.keys()
    if len(stored) == 1:
        message = f"randlora_{stored.pop()} is there without the other projection"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module)
    if not stored:
        conventions["key"] = fields.whole(config, "projection_prng_key", least=0)
        conventions["sparsity"] = _sparsity(config)
    alpha = fields.number(config, "randlora_alpha")
    return Terms(Form.LINEAR, 0, 0, alpha / rank, rank=rank, alpha=alpha, conventions=conventions)


def _sparsity(config: Mapping[str, Any]) -> str:
    if fields.flag(config, "very_sparse"):
        return "very sparse"
    return "sparse" if fields.flag(config, "sparse") else "dense"


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:
    """With the sizes that projections were drawn at; MismatchError where they do not do."""
    terms, smaller = delta.terms, int(delta.terms.conventions["smaller"])
    larger = max(terms.out, terms.inner)
    if min(terms.out, terms.inner) != smaller:
        message = f"randlora_gamma is for a smaller side of {smaller}, the base's weight is"
        message += f" {terms.out} x {terms.inner}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
    if "A" in delta.roles:
        _check_projections(delta, larger)
        return terms
    if not all(other.terms.sized for other in among):
        message = "the projections are drawn at the largest layer's size, and the base lacks layers"
        hint = "merge into the whole base, or save with save_projection=True"
        raise MismatchError(message, code=Code.UNSUPPORTED, tensor=delta.module, hint=hint)
    largest = [max(other.terms.out for other in among), max(other.terms.inner for other in among)]
    return replace(terms, conventions={**terms.conventions, "largest": largest})


def _check_projections(delta: Delta, larger: int) -> None:
    a, b = delta.roles["A"].shape, delta.roles["B"].shape
    rank, count = delta.roles["lambda"].shape
    fits = (
        len(a) == len(b) == 3
        and a[:2] == (rank, 1)
        and a[2] >= delta.terms.conventions["smaller"]
        and b[0] >= larger
        and b[1] >= count
        and b[2] == rank
    )
    if not fits:
        message = f"randlora_A {list(a)} and randlora_B {list(b)} are too small for rank {rank},"
        message += f" {count} bases and {delta.terms.out} x {delta.terms.inner}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - RandLoRA knows no stacked experts
) -> Pair:
    """(out, n r) and (n r, in)."""
    if not terms.sized:
        message = "the layer's size is told by the base alone"
        raise InputError(message, code=Code.UNSUPPORTED, hint="name the base")
    a, b = _projections(factors, terms)
    lambdas, gammas = factors["lambda"], factors["gamma"]
    rank, count = lambdas.shape
    smaller = int(terms.conventions["smaller"])
    left = b[: max(terms.out, terms.inner), :count].to(lambdas).flatten(start_dim=1)
    scaled = lambdas[:, :, None] * a[:, :, :smaller].to(lambdas) * gammas
    right = scaled.reshape(rank * count, smaller)
    return (left, right) if terms.inner == smaller else (right.T, left.T)


def _projections(factors: Mapping[str, torch.Tensor], terms: Terms) -> Pair:
    """A and B from the file, or drawn again."""
    if "A" in factors:
        return factors["A"], factors["B"]
    larger, smaller = sorted(terms.conventions["largest"], reverse=True)
    rank, key = terms.rank or 1, int(terms.conventions["key"])
    kind = terms.conventions["sparsity"]
    if kind == "dense":
        return random_bases.dense(key, rank, smaller, larger)
    return random_bases.sparse(
        key, rank, smaller, larger, 3.0 if kind == "sparse" else math.sqrt(smaller)
    )


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
