"""What is seen in tensors when their values are read: the seam between operations and engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from adaptool.model.adapter import Delta
from adaptool.store.tensors import TensorRef


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


class ValueReader(Protocol):
    """Reads tensor values for those who may not import torch themselves."""

    def scan(self, ref: TensorRef) -> Scan:
        """Look at every value of one tensor."""
        ...

    def spectrum(self, delta: Delta) -> Spectrum | None:
        """The delta's spectrum; None where it is no product of finite thin factors."""
        ...
