"""Tensors that lie one after the other in another one, read from where each of them is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef


class AdjoinedSource:
    """The bytes of several tensors as one run; nothing is kept of them."""

    def __init__(self, parents: Sequence[TensorRef]) -> None:
        """In this order."""
        self.parents = tuple(parents)
        self._ends = list(accumulate(parent.length for parent in parents))

    @property
    def name(self) -> str:
        """The file of the first tensor."""
        return self.parents[0].file

    @property
    def size(self) -> int:
        """Bytes."""
        return self._ends[-1]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, from as many tensors as it takes."""
        target = buffer.cast("B")
        place, done = bisect_right(self._ends, offset), 0
        while done < len(target):
            parent = self.parents[place]
            inside = offset + done - (self._ends[place] - parent.length)
            count = min(parent.length - inside, len(target) - done)
            parent.source.read_into(parent.offset + inside, target[done : done + count])
            place, done = place + 1, done + count

    def beneath(self) -> Iterable[Source]:
        """The files that it reads."""
        return [parent.source for parent in self.parents]

    def check_unchanged(self) -> None:
        """IntegrityError where a file changed since it was opened."""
        for parent in self.parents:
            check_unchanged(parent.source)

    def close(self) -> None:
        """The files belong to whoever opened them."""


def adjoined(name: str, refs: Sequence[TensorRef], shape: Sequence[int]) -> TensorRef:
    """Tensors of one dtype, one after the other, seen under a shape."""
    source = AdjoinedSource(refs)
    return TensorRef(name, refs[0].dtype, tuple(shape), 0, source.size, source)


def rows_of(ref: TensorRef, index: int, count: int) -> TensorRef:
    """Run `index` of `count` equal runs along the first axis."""
    length = ref.length // count
    shape = (ref.shape[0] // count, *ref.shape[1:])
    offset = ref.offset + index * length
    return TensorRef(ref.name, ref.dtype, shape, offset, length, ref.source)
