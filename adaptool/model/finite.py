"""Tensors whose values are looked at as they pass: NaN and infinities are refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.numbers import WORDS, as_float64
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef


def finite(ref: TensorRef) -> TensorRef:
    """The same tensor; reading a part of it that holds NaN or an infinity raises InputError.

    So the check costs no reading of its own, and what fails it is never published.
    """
    if not ref.dtype.floating or ref.dtype.bits not in WORDS:
        return ref
    source = FiniteSource(ref)
    return TensorRef(ref.name, ref.dtype, ref.shape, ref.offset, ref.length, source)


@dataclass(frozen=True, slots=True)
class FiniteSource:
    """The bytes of `ref`, at their own offsets."""

    ref: TensorRef

    @property
    def parents(self) -> tuple[TensorRef, ...]:
        """The tensor that is looked at."""
        return (self.ref,)

    @property
    def weights(self) -> tuple[float, ...]:
        """What each of them counts for in the values."""
        return (1.0,)

    @property
    def name(self) -> str:
        """The file."""
        return self.ref.file

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.ref.source.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read, then look at every whole element that was read."""
        import numpy as np

        target = buffer.cast("B")
        self.ref.source.read_into(offset, target)
        width = self.ref.dtype.bits // 8
        first = -(-(offset - self.ref.offset) // width)
        begin = first * width - (offset - self.ref.offset)
        count = (len(target) - begin) // width
        words = np.frombuffer(target, WORDS[self.ref.dtype.bits], max(count, 0), begin)
        bad = np.flatnonzero(~np.isfinite(as_float64(words, self.ref.dtype)))
        if len(bad):
            raise self._refusal(first + int(bad[0]))

    def _refusal(self, place: int) -> InputError:
        message = f"holds NaN or an infinity, the first at {place}"
        hint = "training diverged, so what is made of it would be unusable"
        return InputError(
            message, code=Code.NOT_FINITE, file=self.ref.file, tensor=self.ref.name, hint=hint
        )

    def beneath(self) -> Iterable[Source]:
        """The source that it reads."""
        return (self.ref.source,)

    def check_unchanged(self) -> None:
        """IntegrityError where the file changed since it was opened."""
        check_unchanged(self.ref.source)

    def close(self) -> None:
        """The file belongs to whoever opened it."""
