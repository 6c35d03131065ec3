"""Whether two output tensors of one base tensor are changed in the same way."""

from __future__ import annotations

from adaptool.model.adapter import Delta
from adaptool.model.derived import transposed
from adaptool.model.plan import Blend, Piece
from adaptool.ops.copies import same_bytes
from adaptool.ops.drafts import Draft
from adaptool.store.tensors import TensorRef

# A head's factors are an embedding's, turned: PEFT writes both where one adapter is on both.
_TURNED = {"A": "embedding_B", "B": "embedding_A"}


def alike(left: Draft, right: Draft) -> bool:
    """Whether the same deltas and the same whole tensors, by their bytes, were put onto both."""
    if (left.replaced_by is None) != (right.replaced_by is None):
        return False
    if left.replaced_by is not None and not same_bytes_of(left.source, right.source):
        return False
    counts = (len(left.pieces), len(left.blends)) == (len(right.pieces), len(right.blends))
    return (
        counts
        and all(_blend(*pair) for pair in zip(left.blends, right.blends, strict=True))
        and all(same_piece(*pair) for pair in zip(left.pieces, right.pieces, strict=True))
    )


def same_bytes_of(left: TensorRef, right: TensorRef) -> bool:
    """Whether both are one tensor, or hold the same bytes."""
    return left is right or same_bytes(left, right)


def same_piece(left: Piece, right: Piece) -> bool:
    """Whether both are one delta, at one weight, on one part of the tensor."""
    if (left.adapter, left.weight) != (right.adapter, right.weight):
        return False
    ours, theirs = left.delta, right.delta
    if ours.terms.scaling != theirs.terms.scaling:
        return False
    if ours.roles.keys() == theirs.roles.keys():
        same_view = left.view == right.view and ours.tuner == theirs.tuner
        return same_view and all(
            same_bytes_of(ref, theirs.roles[role]) for role, ref in ours.roles.items()
        )
    return _is_turned(ours, theirs) or _is_turned(theirs, ours)


def _is_turned(head: Delta, embedding: Delta) -> bool:
    if head.roles.keys() != _TURNED.keys() or embedding.roles.keys() != set(_TURNED.values()):
        return False
    return all(
        same_bytes_of(ref, transposed(embedding.roles[_TURNED[role]]))
        for role, ref in head.roles.items()
    )


def _blend(left: Blend, right: Blend) -> bool:
    plain = (left.adapter, left.weight, left.rows, left.view)
    same = plain == (right.adapter, right.weight, right.rows, right.view)
    return same and same_bytes_of(left.value, right.value)
