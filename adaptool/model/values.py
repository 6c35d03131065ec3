"""What is seen in tensors when their values are read: the seam between operations and engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from adaptool.model.adapter import Delta
from adaptool.model.view import View
from adaptool.store.tensors import TensorRef

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Scan:
    """All values of one tensor, looked at once.

    `nonfinite` counts NaN and infinities, `first` is the flat index of the first one; -0 is zero.
    """

    nonfinite: int
    first: int | None
    all_zero: bool


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one scaled delta, summed up.

    `norm` is its Frobenius norm. `effective_rank` is exp of the entropy of the squared singular
    values taken as a distribution (0 for a delta of zeros); of stacked experts, their mean.
    `energy[k]` is the share of the sum of squares that the largest k + 1 singular values hold.
    """

    norm: float
    effective_rank: float
    energy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two things of one shape, as sums over their elements in float64.

    `inner` is <a, b>, `first` |a|^2, `second` |b|^2, `difference` |a - b|^2; NaN where a value is
    not finite. The difference of equal ones is exactly 0.
    """

    inner: float
    first: float
    second: float
    difference: float

    @property
    def cosine(self) -> float | None:
        """<a, b> / (|a| |b|); None where one of them is zero or not finite."""
        scale = math.sqrt(self.first) * math.sqrt(self.second)
        if not scale or not math.isfinite(scale) or not math.isfinite(self.inner):
            return None
        if self.difference == 0:
            return 1.0  # sqrt(x) sqrt(x) is not always x
        return max(-1.0, min(1.0, self.inner / scale))

    @property
    def relative_error(self) -> float | None:
        """|a - b| / |a|; 0 for equal ones, None where a is zero and b is not, or not finite."""
        if self.difference == 0:
            return 0.0
        if not self.first or not math.isfinite(self.first) or not math.isfinite(self.difference):
            return None
        return math.sqrt(self.difference) / math.sqrt(self.first)


def total(parts: Iterable[Comparison]) -> Comparison:
    """The comparison of several pairs, taken as one long pair."""
    found = list(parts)
    return Comparison(
        inner=sum(part.inner for part in found),
        first=sum(part.first for part in found),
        second=sum(part.second for part in found),
        difference=sum(part.difference for part in found),
    )


class ValueReader(Protocol):
    """Reads tensor values for those who may not import torch themselves."""

    def several(self, work: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
        """What `work`, which asks this reader, finds of each item; in order, on all threads."""
        ...

    def scan(self, ref: TensorRef) -> Scan:
        """Look at every value of one tensor."""
        ...

    def spectrum(self, delta: Delta) -> Spectrum | None:
        """The delta's spectrum; None where it is no product of finite thin factors."""
        ...

    def gram(self, deltas: Sequence[Delta]) -> tuple[tuple[float, ...], ...] | None:
        """All inner products of scaled deltas of one shape; None where one is no product."""
        ...

    def compare(self, one: Delta, other: Delta) -> Comparison | None:
        """Two scaled deltas of one shape; None where one of them is no product of thin factors."""
        ...

    def norm_squared(self, delta: Delta) -> float | None:
        """|delta|^2, scaled; None where it is no product of thin factors."""
        ...

    def compare_tensors(self, one: TensorRef, other: TensorRef) -> Comparison:
        """Two tensors of one shape, element by element, in bounded memory; dtypes may differ."""
        ...

    def squares(self, ref: TensorRef, view: View | None = None) -> float:
        """The sum of squares of the elements that `view` names, in bounded memory; None: all."""
        ...
