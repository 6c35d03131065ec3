"""A tensor as a header describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from adaptool.dtypes import Dtype
from adaptool.store.source import Source


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor in one file.

    `offset` is absolute in the file (after the header), `length` in bytes; `source` reads them.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    length: int
    source: Source = field(compare=False, repr=False)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def file(self) -> str:
        """The file it lies in, as messages name it."""
        return self.source.name
