"""One pair of factors an expert and projection as PEFT's stacked experts: `apart` the other way.

The library's module has one parameter for all experts, which PEFT targets by name
(`target_parameters`): A (E r, in), expert-major, B (out, r E), rank-major. Several projections in
one parameter are runs of its output rows: their factors stand side by side, B's on a diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.expert_stacks import factor_pair, most_frequent, ratio_of
from adaptool.layouts.plain_deltas import FACTORS
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.derived import (
    block_diagonal,
    joined,
    permuted,
    reshaped,
    same_values,
    stacked,
    transposed,
    zeros,
)
from adaptool.store.tensors import TensorRef

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stack:
    """A parameter of stacked experts.

    `chunks`: projections whose output rows it holds one after the other, `interleaved`: every
    n-th row each. `swapped`: its axes are (experts, in, out) and PEFT takes them the other way
    round.
    """

    parameter: str
    experts: int
    chunks: int = 1
    interleaved: bool = False
    swapped: bool = False


def can_stack(delta: Delta) -> bool:
    """Whether a delta is a plain pair of factors of one matrix."""
    return (
        delta.tuner == "lora"
        and delta.terms.form is Form.LINEAR
        and delta.roles.keys() == FACTORS
        and not delta.terms.conventions
    )


def together(stack: Stack, pieces: Mapping[Place, Delta]) -> Delta:
    """The delta of the whole parameter; `pieces` by expert and chunk, those without one are 0.

    MismatchError where the pieces have no common shape.
    """
    first = next(iter(pieces.values()))
    _check(stack, pieces)
    scaling = most_frequent([delta.terms.scaling for delta in pieces.values()]) or 1.0
    rank = max(delta.terms.rank or 1 for delta in pieces.values())
    pairs = {
        place: factor_pair(delta, rank, ratio_of(delta.terms.scaling, scaling))
        for place, delta in pieces.items()
    }
    full = [
        [_pair(pairs, expert, chunk) for chunk in range(stack.chunks)]
        for expert in range(stack.experts)
    ]
    shared = stack.chunks > 1 and _share_inputs(full)
    a = stacked([_inputs(row, shared=shared) for row in full])
    b = stacked([_outputs(row, stack, shared=shared) for row in full])
    if stack.swapped:
        a, b = transposed(b), transposed(a)
    experts, rank, inner = a.shape
    out = b.shape[1]
    roles = {
        "A": reshaped(a, (experts * rank, inner)),
        "B": reshaped(permuted(b, (1, 2, 0)), (out, rank * experts)),
    }
    terms = Terms(Form.EXPERTS, out, inner, scaling, rank, scaling * rank, experts=experts)
    dtypes = {delta.dtype for delta in pieces.values()}
    return replace(
        first,
        module=stack.parameter.rpartition(".")[0],
        parameter=stack.parameter,
        roles=roles,
        terms=terms,
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
    )


def _check(stack: Stack, pieces: Mapping[Place, Delta]) -> None:
    shapes = {(delta.terms.out, delta.terms.inner) for delta in pieces.values()}
    outside = [delta for (expert, _), delta in pieces.items() if expert >= stack.experts]
    if len(shapes) == 1 and not outside:
        return
    message = f"{stack.parameter} holds {stack.experts} experts of one shape"
    if len(shapes) > 1:
        message += f", the adapter has {sorted(shapes)}"
    named = outside[0] if outside else next(iter(pieces.values()))
    raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=named.parameter)


def _pair(
    pairs: Mapping[Place, tuple[TensorRef, TensorRef]], expert: int, chunk: int
) -> tuple[TensorRef, TensorRef]:
    found = pairs.get((expert, chunk))
    if found is not None:
        return found
    a, b = next(iter(pairs.values()))
    return zeros(a.name, a.dtype, a.shape), zeros(b.name, b.dtype, b.shape)


def _share_inputs(full: Sequence[Sequence[tuple[TensorRef, TensorRef]]]) -> bool:
    """Whether all projections of each expert have one A, as where PEFT trained the stack."""
    return all(same_values(row[0][0], other) for row in full for other, _ in row[1:])


def _inputs(row: Sequence[tuple[TensorRef, TensorRef]], *, shared: bool) -> TensorRef:
    return row[0][0] if shared else joined([a for a, _ in row], axis=0)


def _outputs(
    row: Sequence[tuple[TensorRef, TensorRef]], stack: Stack, *, shared: bool
) -> TensorRef:
    parts = [b for _, b in row]
    b = joined(parts, axis=0) if shared else block_diagonal(parts)
    if not stack.interleaved:
        return b
    rows, rank = b.shape
    split = reshaped(b, (stack.chunks, rows // stack.chunks, rank))
    return reshaped(permuted(split, (1, 0, 2)), (rows, rank))
