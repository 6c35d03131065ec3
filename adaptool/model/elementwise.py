"""A tensor computed element by element from tensors of its shape, a part at a time.

Saved embeddings are as large as an adapter gets: what is made of them is never whole in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.errors import InternalError
from adaptool.findings import Code
from adaptool.model.numbers import WORDS, as_float64
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]
    Make = Callable[[Sequence["Array"]], "Array"]

F64 = DTYPES["F64"]
WIDTH = 8


def elementwise(refs: Sequence[TensorRef], make: Make, weights: Sequence[float] = ()) -> TensorRef:
    """The float64 tensor that `make` gives, from flat float64 parts of all `refs`.

    `weights` say what each counts for in it, where that is a number; 1 by default.
    """
    first = refs[0]
    if any(ref.shape != first.shape for ref in refs):
        message = f"shapes {[list(ref.shape) for ref in refs]} are not one"
        raise InternalError(message, code=Code.INTERNAL, file=first.file, tensor=first.name)
    length = first.elements * WIDTH
    source = ElementwiseSource(tuple(refs), make, length, tuple(weights) or (1.0,) * len(refs))
    return TensorRef(first.name, F64, first.shape, 0, length, source)


@dataclass(frozen=True, slots=True)
class ElementwiseSource:
    """The bytes of one such tensor; any part of them is made when it is read."""

    parents: tuple[TensorRef, ...]
    make: Make
    size: int
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """The file of the first parent."""
        return self.parents[0].file

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Make the elements that lie in this range, which may begin inside of one."""
        target = buffer.cast("B")
        first, stop = offset // WIDTH, -(-(offset + len(target)) // WIDTH)
        made = self.make([_part(parent, first, stop) for parent in self.parents])
        raw = memoryview(made.astype("<f8", copy=False).tobytes())
        begin = offset - first * WIDTH
        target[:] = raw[begin : begin + len(target)]

    def beneath(self) -> Iterable[Source]:
        """The sources that it reads."""
        return (parent.source for parent in self.parents)

    def check_unchanged(self) -> None:
        """IntegrityError where a parent's file changed since it was opened."""
        for parent in self.parents:
            check_unchanged(parent.source)

    def close(self) -> None:
        """The files belong to whoever opened them."""


def _part(ref: TensorRef, first: int, stop: int) -> Array:
    import numpy as np

    if ref.dtype.bits % 8:
        message = f"elements of {ref.dtype.bits} bits cannot be read one by one"
        raise InternalError(message, code=Code.INTERNAL, file=ref.file, tensor=ref.name)
    width = ref.dtype.bits // 8
    raw = bytearray((stop - first) * width)
    if raw:
        ref.source.read_into(ref.offset + first * width, memoryview(raw))
    return as_float64(np.frombuffer(raw, dtype=WORDS[ref.dtype.bits]), ref.dtype)
