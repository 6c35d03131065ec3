"""What adapter space asks of those who may compute: the seam between operations and engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptool.model.adapter import Delta
from adaptool.store.tensors import TensorRef

Spectra = tuple[tuple[float, ...], ...]
"""Singular values of a scaled delta, largest first: one tuple, or one for each stacked expert."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """One delta of a sum and its weight."""

    delta: Delta
    weight: float


class Algebra(Protocol):
    """Computes on factors; tensors it makes are computed when they are read."""

    def spectra(self, deltas: Sequence[Delta]) -> list[Spectra]:
        """The singular values of each delta's product of factors, scaling included.

        InputError where a factor holds NaN or infinities.
        """
        ...

    def truncated(self, delta: Delta, rank: int) -> Mapping[str, TensorRef]:
        """The delta's factors by role at another rank, in float64, for the same scaling."""
        ...
