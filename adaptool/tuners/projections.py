"""Projections that all layers share: VeRA's and PVeRA's A (rank, largest in), B (largest out, r).

They are random and frozen. With `save_projection=False` they are not in the file: they are drawn
again, from `projection_prng_key`, at the sizes of the largest layers, which the base tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.tuners import fields
from adaptool.tuners.randomness import kaiming_uniform

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]


def vector_terms(
    config: Mapping[str, Any],
    module: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    directions: int = 1,
) -> Terms:
    """Outputs and rank r; InputError where vectors and projections do not fit each other.

    lambda_b is (out), lambda_d (directions * r), and A has as many rows.
    """
    (out, *_), (count, *_) = shapes["lambda_b"], shapes["lambda_d"]
    if count % directions:
        message = f"lambda_d has {count} numbers, must have {directions} for each of r directions"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    rank = count // directions
    stored = {"A", "B"} & shapes.keys()
    if len(stored) == 1:
        message = f"the projection {stored.pop()} is there without the other one"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module)
    if not stored:
        own = {"key": fields.whole(config, "projection_prng_key", least=0), "rows": count}
        return Terms(Form.LINEAR, out, 0, 1.0, rank=rank, conventions=own)
    a, b = shapes["A"], shapes["B"]
    if len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (count, rank) or b[0] < out:
        message = f"lambda_d {count} and lambda_b {out} do not fit A {list(a)} and B {list(b)}"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.LINEAR, out, 0, 1.0, rank=rank)


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:
    """With the sizes that projections were drawn at; MismatchError where they are too small."""
    terms = delta.terms
    if "A" in delta.roles:
        if delta.roles["A"].shape[1] < terms.inner:
            inputs = delta.roles["A"].shape[1]
            message = f"the projection A has {inputs} inputs, the base has {terms.inner}"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
        return terms
    if not all(other.terms.sized for other in among):
        message = "the projections are drawn at the largest layer's size, and the base lacks layers"
        hint = "merge into the whole base, or save with save_projection=True"
        raise MismatchError(message, code=Code.UNSUPPORTED, tensor=delta.module, hint=hint)
    largest = [max(other.terms.out for other in among), max(other.terms.inner for other in among)]
    return replace(terms, conventions={**terms.conventions, "largest": largest})


def scaled_pair(factors: Mapping[str, torch.Tensor], terms: Terms) -> Pair:
    """lambda_b B (out, r) and lambda_d A (r, in), of the first r rows of A."""
    if not terms.inner:
        message = "the layer's inputs are counted in the base alone"
        raise InputError(message, code=Code.UNSUPPORTED, hint="name the base")
    rank = terms.rank or 0
    lambda_b, lambda_d = factors["lambda_b"], factors["lambda_d"][:rank]
    a, b = _projections(factors, terms)
    left = lambda_b[:, None] * b[: terms.out].to(lambda_b)
    return left, lambda_d[:, None] * a[:rank, : terms.inner].to(lambda_d)


def _projections(factors: Mapping[str, torch.Tensor], terms: Terms) -> Pair:
    """A and B from the file, or drawn again in PEFT's order: A first."""
    if "A" in factors:
        return factors["A"], factors["B"]
    out, inner = terms.conventions["largest"]
    shapes = (terms.conventions["rows"], inner), (out, terms.rank or 0)
    a, b = kaiming_uniform(terms.conventions["key"], shapes)
    return a, b
