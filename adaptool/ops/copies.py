"""Copies of the base's tensors that an adapter carries: whether they are its very bytes."""

from __future__ import annotations

from adaptool.store.tensors import TensorRef

BLOCK = 4 * 1024 * 1024


def same_bytes(left: TensorRef, right: TensorRef) -> bool:
    """Whether two tensors have the same dtype, shape and bytes; reads both until they differ."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    ours, theirs = bytearray(BLOCK), bytearray(BLOCK)
    for start in range(0, left.length, BLOCK):
        size = min(BLOCK, left.length - start)
        left.source.read_into(left.offset + start, memoryview(ours)[:size])
        right.source.read_into(right.offset + start, memoryview(theirs)[:size])
        if ours[:size] != theirs[:size]:
            return False
    return True
