"""What became of a tensor's numbers in another that was made of it."""

from __future__ import annotations

from adaptool.store.tensors import TensorRef


def gains(ref: TensorRef, original: TensorRef) -> frozenset[float]:
    """What the numbers of `original` are multiplied by where `ref` holds them; none where not.

    1 where they are only moved. Several where it holds them several times.
    """
    if ref.source is original.source and _overlap(ref, original):
        return frozenset({1.0})
    parents = getattr(ref.source, "parents", ())
    weights = getattr(ref.source, "weights", ())
    return frozenset(
        weight * gain
        for parent, weight in zip(parents, weights, strict=False)
        for gain in gains(parent, original)
    )


def _overlap(ref: TensorRef, original: TensorRef) -> bool:
    return (
        ref.offset < original.offset + original.length and original.offset < ref.offset + ref.length
    )
