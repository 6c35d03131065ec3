"""Sums of low-rank deltas by joining their factors: exact, and only moves where scales agree.

sum_t c_t B_t A_t = [c_1 B_1, c_2 B_2, ...] [A_1; A_2; ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.derived import joined, reshaped, scaled
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Summand:
    """A LoRA delta and its weight in a sum."""

    delta: Delta
    weight: float

    @property
    def coefficient(self) -> float:
        """What multiplies B A."""
        return self.weight * self.delta.terms.scaling


def factor_sum(summands: Sequence[Summand]) -> Delta:
    """The weighted sum as one LoRA delta, its rank the sum of all ranks.

    Where all coefficients are one number it becomes the scaling and no factor changes; elsewhere
    the scaling is 1 and the coefficients go into B, in float64. MismatchError where the summands
    do not update the same matrix.
    """
    first = summands[0].delta
    _check_alike(summands)
    coefficients = {summand.coefficient for summand in summands}
    common = coefficients.pop() if len(coefficients) == 1 else 1.0
    scales = [summand.coefficient / common if common else 0.0 for summand in summands]
    terms = replace(
        first.terms,
        rank=sum(summand.delta.terms.rank or 0 for summand in summands),
        scaling=common,
        alpha=first.terms.alpha if len(summands) == 1 else None,
        conventions=_dense(first.terms),
    )
    return replace(first, roles=_roles(summands, scales), terms=terms)


def _check_alike(summands: Sequence[Summand]) -> None:
    first = summands[0].delta
    for summand in summands[1:]:
        delta = summand.delta
        if _kind(delta.terms) != _kind(first.terms):
            message = f"{_words(delta.terms)} here, {_words(first.terms)} in the first adapter"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.parameter)


def _kind(terms: Terms) -> tuple[object, ...]:
    """What two deltas must share: their size, and how they lie in their parameter."""
    places = (terms.conventions.get(name) for name in ("packing", "axes"))
    return (terms.form, terms.out, terms.inner, terms.kernel, terms.experts, *places)


def _words(terms: Terms) -> str:
    experts = f", {terms.experts} experts" if terms.experts else ""
    return f"{terms.form} {[terms.out, terms.inner]}{experts}"


def _dense(terms: Terms) -> dict[str, object]:
    return {
        name: value for name, value in terms.conventions.items() if not name.startswith("blocks")
    }


def _roles(summands: Sequence[Summand], scales: Sequence[float]) -> dict[str, TensorRef]:
    terms = summands[0].delta.terms
    right, left = ("A", "B") if terms.form is not Form.EMBEDDING else ("embedding_A", "embedding_B")
    rights = [summand.delta.roles[right] for summand in summands]
    lefts = [
        scaled(summand.delta.roles[left], scale)
        for summand, scale in zip(summands, scales, strict=True)
    ]
    if terms.form is not Form.EXPERTS:
        return {right: joined(rights, axis=0), left: joined(lefts, axis=1)}
    return {right: _stack(rights, terms), left: _columns(lefts, terms)}


def _stack(rights: Sequence[TensorRef], terms: Terms) -> TensorRef:
    """A of stacked experts, (E r, in): the ranks of one expert stand together."""
    count = terms.experts
    whole = joined(
        [reshaped(ref, (count, ref.shape[0] // count, ref.shape[1])) for ref in rights], axis=1
    )
    return reshaped(whole, (count * whole.shape[1], whole.shape[2]))


def _columns(lefts: Sequence[TensorRef], terms: Terms) -> TensorRef:
    """B of stacked experts, (out, r E): the expert varies fastest, but where Unsloth packed it."""
    count = terms.experts
    by_expert = terms.conventions.get("packing") == "unsloth"
    shaped = [
        reshaped(ref, (ref.shape[0], count, width) if by_expert else (ref.shape[0], width, count))
        for ref in lefts
        for width in [ref.shape[1] // count]
    ]
    whole = joined(shaped, axis=2 if by_expert else 1)
    return reshaped(whole, (whole.shape[0], whole.shape[1] * whole.shape[2]))
