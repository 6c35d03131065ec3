"""One tensor that a file holds under two names: read once, compared where it is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef


def stored_twice(first: TensorRef, second: TensorRef) -> TensorRef:
    """The tensor `first`, whose bytes are compared with those of `second` as they are read.

    Reading it raises InputError where they differ. So nothing is read to decide, and nothing that
    contradicts itself is published. InputError at once where dtypes or shapes differ.
    """
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        kinds = [f"{ref.dtype.name} {list(ref.shape)}" for ref in (first, second)]
        raise _contradiction(first, second, f"{kinds[0]} here, {kinds[1]} there")
    source = StoredTwice(first, second)
    return TensorRef(first.name, first.dtype, first.shape, first.offset, first.length, source)


@dataclass(frozen=True, slots=True)
class StoredTwice:
    """The bytes of `first`, at their own offsets; those of `second` must be the same."""

    first: TensorRef
    second: TensorRef

    @property
    def parents(self) -> tuple[TensorRef, ...]:
        """Both stored tensors."""
        return (self.first, self.second)

    @property
    def weights(self) -> tuple[float, ...]:
        """What each of them counts for in the values."""
        return (1.0, 1.0)

    @property
    def name(self) -> str:
        """The file."""
        return self.first.file

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.first.source.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read both and compare; InputError where they differ."""
        target = buffer.cast("B")
        self.first.source.read_into(offset, target)
        other = memoryview(bytearray(len(target)))
        there = self.second.offset + offset - self.first.offset
        self.second.source.read_into(there, other)
        if target != other:
            raise _contradiction(self.first, self.second, "their values differ")

    def beneath(self) -> Iterable[Source]:
        """The sources that it reads."""
        return (ref.source for ref in self.parents)

    def check_unchanged(self) -> None:
        """IntegrityError where the file changed since it was opened."""
        for ref in self.parents:
            check_unchanged(ref.source)

    def close(self) -> None:
        """The file belongs to whoever opened it."""


def _contradiction(first: TensorRef, second: TensorRef, why: str) -> InputError:
    return InputError(
        f"holds the same parameter as {second.name!r}, but {why}",
        code=Code.SLOT_TAKEN_TWICE,
        file=first.file,
        tensor=first.name,
        hint="nothing says which of the two was trained: save the adapter again",
    )
