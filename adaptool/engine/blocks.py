"""Tensors cut into the blocks that a sidecar speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adaptool.dtypes import Dtype
from adaptool.engine.codec import Bytes, decode_plain, decode_sparse, decode_xor
from adaptool.store.sidecar import BLOCK_BYTES, Coding, Restored, RunningDigest, Way
from adaptool.store.tensors import TensorRef

PIECE_BYTES = 256 * 1024
COMPUTED = frozenset({"BF16", "F16", "F32"})


@dataclass(frozen=True, slots=True)
class Cut:
    """One block: bytes [start, stop) of the base's tensor, and those of the merged one."""

    base: tuple[int, int]
    merged: tuple[int, int] | None

    @property
    def size(self) -> int:
        """Bytes of the base's block."""
        return self.base[1] - self.base[0]


def block_elements(merged: Dtype) -> int:
    """Elements of a whole block."""
    return BLOCK_BYTES * 8 // merged.bits


def cuts(base: TensorRef, merged: TensorRef | None) -> Iterator[Cut]:
    """The blocks of a tensor, the merged one's and the base's side by side."""
    if merged is None or merged.dtype == base.dtype:
        for start in range(0, base.length, BLOCK_BYTES):
            span = (start, min(base.length, start + BLOCK_BYTES))
            yield Cut(span, None if merged is None else span)
        return
    step = block_elements(merged.dtype)
    ours, theirs = base.dtype.bits // 8, merged.dtype.bits // 8
    for first in range(0, base.elements, step):
        last = min(base.elements, first + step)
        yield Cut((first * ours, last * ours), (first * theirs, last * theirs))


def content(ref: TensorRef, span: tuple[int, int]) -> bytearray:
    """Bytes of a tensor."""
    buffer = bytearray(span[1] - span[0])
    if buffer:
        ref.source.read_into(ref.offset + span[0], memoryview(buffer))
    return buffer


def digested(ref: TensorRef, span: tuple[int, int]) -> str:
    """The digest of bytes of a tensor, read by pieces that stay in a cache."""
    running = RunningDigest()
    buffer = memoryview(bytearray(min(PIECE_BYTES, span[1] - span[0])))
    for start in range(span[0], span[1], PIECE_BYTES):
        piece = buffer[: span[1] - start]
        ref.source.read_into(ref.offset + start, piece)
        running.take(start - span[0], piece)
    return running.text()


def restored(
    coding: Coding, stream: bytes, predicted: Bytes, merged: Bytes, base: Dtype, *, alike: bool
) -> Bytes | None:
    """The base's bytes of a block; None where the stream does not fit.

    `predicted` are those that were computed, `merged` the merged model's; `alike`: in the base's
    own dtype.
    """
    import numpy as np

    from adaptool.engine.bits import FORMATS

    width = max(1, base.bits // 8)
    if coding is Coding.NOTHING:
        return predicted
    if coding is Coding.XOR:
        return decode_xor(stream, merged, width)
    if coding is Coding.DEFLATED:
        return decode_plain(stream, len(predicted), width)
    if coding is Coding.RAW or base.name not in FORMATS:
        return stream
    form = FORMATS[base.name]
    theirs = np.frombuffer(merged, form.pattern) if alike else None
    true = decode_sparse(stream, np.frombuffer(predicted, form.pattern), theirs, form)
    return None if true is None else true.view(np.uint8).data


def fits(kept: Restored, base: TensorRef, merged: TensorRef | None) -> bool:
    """Whether a sidecar's entry is of tensors of these dtypes and sizes."""
    sizes = [cut.size for cut in cuts(base, merged)]
    if len(kept.blocks) != len(sizes) or (merged is None) != (kept.way is Way.STORED):
        return False
    if merged is None:
        return sizes == [block.length for block in kept.blocks]
    computed = kept.way is Way.SUBTRACTED and {base.dtype.name, merged.dtype.name} <= COMPUTED
    return merged.shape == base.shape and (computed or merged.dtype == base.dtype)
