"""Tensors made of other tensors: moved, joined, scaled. Their bytes are made when they are read.

Layouts differ in where a factor's numbers stand, not in the numbers. A layout hands on what PEFT
would have stored as a `TensorRef` whose source does the moving; nothing behind it needs to know.
Moves work on bits, so they lose nothing in any dtype. Sums and products are taken in float64,
which is the dtype of what they make: whoever writes it rounds once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES, Dtype
from adaptool.errors import InternalError
from adaptool.findings import Code
from adaptool.model.elementwise import elementwise
from adaptool.model.numbers import WORDS, as_float64
from adaptool.model.view import Span
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]
    Make = Callable[[Sequence["Array"]], "Array"]

F64 = DTYPES["F64"]
F32 = DTYPES["F32"]


class DerivedSource:
    """The bytes of one derived tensor; made whole, kept until all of them were read once."""

    def __init__(
        self,
        parents: Sequence[TensorRef],
        make: Make,
        size: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        """`make` gets the parents' arrays and gives the tensor's; both in `array`'s form.

        `weights` are what the parents are multiplied by, where that is not 1.
        """
        self.parents = tuple(parents)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.parents)
        self._make = make
        self._size = size
        self._lock = threading.Lock()
        self._value: memoryview | None = None
        self._unread = 0

    @property
    def name(self) -> str:
        """The file of the first parent."""
        return self.parents[0].file if self.parents else "(made here)"

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Make the tensor, or go on with the one made before."""
        target = buffer.cast("B")
        with self._lock:
            if self._value is None:
                self._value, self._unread = self._made(), self._size
            target[:] = self._value[offset : offset + len(target)]
            self._unread -= len(target)
            if self._unread <= 0:
                self._value = None

    def _made(self) -> memoryview:
        made = self._make([array(parent) for parent in self.parents])
        raw = memoryview(made.tobytes())
        if len(raw) != self._size:
            message = f"made {len(raw)} bytes for a tensor of {self._size}"
            raise InternalError(message, code=Code.INTERNAL, file=self.name)
        return raw

    def beneath(self) -> Iterator[Source]:
        """The sources that it reads."""
        return (parent.source for parent in self.parents)

    def check_unchanged(self) -> None:
        """IntegrityError where a parent's file changed since it was opened."""
        for parent in self.parents:
            check_unchanged(parent.source)

    def close(self) -> None:
        """The files belong to whoever opened them."""
        self._value = None


def array(ref: TensorRef) -> Array:
    """A tensor as numpy sees it: floating dtypes below 32 bits as words, the others as they are."""
    import numpy as np

    raw = bytearray(ref.length)
    if ref.length:
        ref.source.read_into(ref.offset, memoryview(raw))
    if ref.dtype.bits % 8:
        message = f"elements of {ref.dtype.bits} bits cannot be moved one by one"
        raise InternalError(message, code=Code.INTERNAL, file=ref.file, tensor=ref.name)
    return np.frombuffer(raw, dtype=WORDS[ref.dtype.bits]).reshape(ref.shape)


def derived(
    parents: Sequence[TensorRef],
    shape: Sequence[int],
    dtype: Dtype,
    make: Make,
    name: str = "",
    *,
    weights: Sequence[float] | None = None,
) -> TensorRef:
    """A tensor of `shape` and `dtype` whose words `make` gives; named after its first parent."""
    length = prod(shape) * dtype.bits // 8
    source = DerivedSource(parents, make, length, weights)
    found = name or (parents[0].name if parents else "")
    return TensorRef(found, dtype, tuple(shape), 0, length, source)


def leaves(ref: TensorRef) -> Iterator[TensorRef]:
    """The stored tensors that `ref` is made of; itself where it is stored."""
    parents = getattr(ref.source, "parents", None)
    if parents is None:
        yield ref
        return
    for parent in parents:
        yield from leaves(parent)


def reshaped(ref: TensorRef, shape: Sequence[int]) -> TensorRef:
    """The same elements in the same order under another shape."""
    if prod(shape) != ref.elements:
        message = f"{list(ref.shape)} cannot be seen as {list(shape)}"
        raise InternalError(message, code=Code.INTERNAL, file=ref.file, tensor=ref.name)
    return TensorRef(ref.name, ref.dtype, tuple(shape), ref.offset, ref.length, ref.source)


def permuted(ref: TensorRef, axes: Sequence[int]) -> TensorRef:
    """Axis `axes[k]` of `ref` becomes axis k."""
    if tuple(axes) == tuple(range(len(ref.shape))):
        return ref
    shape = [ref.shape[axis] for axis in axes]
    order = tuple(axes)
    return derived([ref], shape, ref.dtype, lambda values: values[0].transpose(order))


def transposed(ref: TensorRef) -> TensorRef:
    """The last two axes swapped."""
    count = len(ref.shape)
    return permuted(ref, (*range(count - 2), count - 1, count - 2))


def taken(ref: TensorRef, span: Span, axis: int) -> TensorRef:
    """The elements that `span` names along `axis`, in its order."""
    if span.is_whole(ref.shape[axis]):
        return ref
    shape = [*ref.shape]
    shape[axis] = span.count

    def make(values: Sequence[Array]) -> Array:
        return values[0].take(list(span.indices()), axis=axis)

    return derived([ref], shape, ref.dtype, make)


def joined(refs: Sequence[TensorRef], axis: int) -> TensorRef:
    """Tensors one after the other along `axis`; in float64 where their dtypes differ."""
    if len(refs) == 1:
        return refs[0]
    parts = alike(refs)
    shape = [*parts[0].shape]
    shape[axis] = sum(part.shape[axis] for part in parts)
    if axis == 0 and all(
        left.source is right.source and left.offset + left.length == right.offset
        for left, right in itertools.pairwise(parts)
    ):
        first = parts[0]
        length = sum(part.length for part in parts)
        return TensorRef(first.name, first.dtype, tuple(shape), first.offset, length, first.source)

    def make(values: Sequence[Array]) -> Array:
        import numpy as np

        return np.concatenate(values, axis=axis)

    return derived(parts, shape, parts[0].dtype, make)


def stacked(refs: Sequence[TensorRef]) -> TensorRef:
    """Tensors of one shape along a new first axis."""
    return joined([reshaped(ref, (1, *ref.shape)) for ref in refs], axis=0)


def block_diagonal(refs: Sequence[TensorRef]) -> TensorRef:
    """Matrices on a diagonal, zeros around them."""
    if len(refs) == 1:
        return refs[0]
    parts = alike(refs)
    rows = sum(part.shape[0] for part in parts)
    columns = sum(part.shape[1] for part in parts)

    def make(values: Sequence[Array]) -> Array:
        import numpy as np

        whole = np.zeros((rows, columns), dtype=values[0].dtype)
        top = left = 0
        for value in values:
            height, width = value.shape
            whole[top : top + height, left : left + width] = value
            top, left = top + height, left + width
        return whole

    return derived(parts, (rows, columns), parts[0].dtype, make)


def padded(ref: TensorRef, size: int, axis: int) -> TensorRef:
    """Zeros added at the end of `axis` until it has `size` elements."""
    missing = size - ref.shape[axis]
    if not missing:
        return ref
    shape = [*ref.shape]
    shape[axis] = missing
    return joined([ref, zeros(ref.name, ref.dtype, shape)], axis)


def zeros(name: str, dtype: Dtype, shape: Sequence[int]) -> TensorRef:
    """A tensor of zeros."""

    def make(_: Sequence[Array]) -> Array:
        import numpy as np

        return np.zeros(tuple(shape), dtype=WORDS[dtype.bits])

    return derived([], shape, dtype, make, name)


def constant(name: str, values: Sequence[float], shape: Sequence[int] = ()) -> TensorRef:
    """Numbers that stand in the plan, as float32."""

    def make(_: Sequence[Array]) -> Array:
        import numpy as np

        return np.asarray(values, dtype="<f4").reshape(tuple(shape))

    return derived([], shape, F32, make, name)


def scaled(ref: TensorRef, factor: float) -> TensorRef:
    """`factor * ref` in float64; `ref` itself where the factor is 1."""
    return ref if factor == 1.0 else weighted_sum([(factor, ref)])


def weighted_sum(terms: Sequence[tuple[float, TensorRef]]) -> TensorRef:
    """sum of `weight * ref` over tensors of one shape, in float64; made a part at a time."""
    weights = [weight for weight, _ in terms]

    def make(values: Sequence[Array]) -> Array:
        total = values[0] * weights[0]
        for weight, value in zip(weights[1:], values[1:], strict=True):
            total += weight * value
        return total

    return elementwise([ref for _, ref in terms], make, weights)


def product(left: TensorRef, right: TensorRef) -> TensorRef:
    """left (..., m) times right (m, n), which is (..., n); in float64."""

    def make(values: Sequence[Array]) -> Array:
        made: Array = values[0].view("<f8") @ values[1].view("<f8")
        return made

    shape = (*left.shape[:-1], right.shape[1])
    return derived([float64(left), float64(right)], shape, F64, make)


def used_columns(ref: TensorRef) -> tuple[int, int]:
    """The columns [first, stop) of a matrix outside which all is zero; (0, 0) where all is.

    It reads the tensor: for factors, never for a base's weight.
    """
    import numpy as np

    nonzero = as_float64(array(ref), ref.dtype).reshape(ref.shape[0], -1) != 0
    columns = np.flatnonzero(nonzero.any(axis=0))
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)


def same_values(left: TensorRef, right: TensorRef) -> bool:
    """Whether two tensors hold the same bytes; reads them where they are not the same tensor."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    if left.source is right.source and left.offset == right.offset:
        return True
    return array(left).tobytes() == array(right).tobytes()


def alike(refs: Sequence[TensorRef]) -> list[TensorRef]:
    """The tensors as they are where they share a dtype, else all in float64."""
    if len({ref.dtype for ref in refs}) == 1:
        return list(refs)
    return [float64(ref) for ref in refs]


def float64(ref: TensorRef) -> TensorRef:
    """The same numbers in float64."""
    if ref.dtype == F64:
        return ref

    def make(values: Sequence[Array]) -> Array:
        return as_float64(values[0], ref.dtype)

    return derived([ref], ref.shape, F64, make)
