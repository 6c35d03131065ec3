"""Tensors whose values are looked at as they pass: NaN and infinities are refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adaptool.dtypes import Dtype
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.derived import leaves
from adaptool.model.numbers import WORDS, as_float64
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef

# Elements that are looked at together where the value is searched for.
PART = 1 << 20


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
        target = buffer.cast("B")
        self.ref.source.read_into(offset, target)
        width = self.ref.dtype.bits // 8
        begin = -(offset - self.ref.offset) % width
        if _first_bad(target[begin:], self.ref.dtype) is not None:
            raise _refusal(self.ref)

    def beneath(self) -> Iterable[Source]:
        """The source that it reads."""
        return (self.ref.source,)

    def check_unchanged(self) -> None:
        """IntegrityError where the file changed since it was opened."""
        check_unchanged(self.ref.source)

    def close(self) -> None:
        """The file belongs to whoever opened it."""


def _first_bad(raw: memoryview, dtype: Dtype) -> int | None:
    """Which of the elements is the first that is no finite number; None where all are."""
    import numpy as np

    width = dtype.bits // 8
    words = np.frombuffer(raw, WORDS[dtype.bits], len(raw) // width)
    bad = np.flatnonzero(~np.isfinite(as_float64(words, dtype)))
    return int(bad[0]) if len(bad) else None


def _refusal(ref: TensorRef) -> InputError:
    """The error, naming the stored tensor that holds the value where one does."""
    for leaf in leaves(ref):
        place = _place_in(leaf)
        if place is not None:
            message = f"holds NaN or an infinity, the first at {place}"
            hint = "training diverged, so what is made of it would be unusable"
            return _error(leaf, message, hint)
    message = "what is computed of it is no finite number"
    return _error(ref, message, "the factors or their scale are too large")


def _error(ref: TensorRef, message: str, hint: str) -> InputError:
    return InputError(message, code=Code.NOT_FINITE, file=ref.file, tensor=ref.name, hint=hint)


def _place_in(ref: TensorRef) -> int | None:
    if not ref.dtype.floating or ref.dtype.bits not in WORDS:
        return None
    width = ref.dtype.bits // 8
    for first in range(0, ref.elements, PART):
        raw = memoryview(bytearray(min(PART, ref.elements - first) * width))
        ref.source.read_into(ref.offset + first * width, raw)
        found = _first_bad(raw, ref.dtype)
        if found is not None:
            return first + found
    return None
