"""What adapter space asks of those who may compute: the seam between operations and engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adaptool.model.adapter import Delta
from adaptool.store.tensors import TensorRef

Spectra = tuple[tuple[float, ...], ...]
"""Singular values of a scaled delta, largest first: one tuple, or one for each stacked expert."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """One delta of a combination, its weight, and its adapter's position among all."""

    delta: Delta
    weight: float
    place: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """The deltas of one parameter, to be merged by a method of `combinations/` at a rank.

    `options` are that room's.
    """

    parameter: str
    parts: tuple[Weighted, ...]
    method: str
    options: Any
    rank: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Squared error and squared norm of one computed delta."""

    error: float
    norm: float

    @property
    def relative(self) -> float:
        """|error| / |delta|; 0 where there is no delta."""
        return math.sqrt(self.error / self.norm) if self.norm else 0.0


def total(parts: Iterable[Measured]) -> Measured:
    """Of several deltas together."""
    found = list(parts)
    return Measured(math.fsum(part.error for part in found), math.fsum(part.norm for part in found))


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

    def factored(self, delta: Delta) -> Delta:
        """The delta of any low-rank kind as a LoRA delta of the product's own rank."""
        ...

    def mixed(self, mixture: Mixture) -> Mapping[str, TensorRef]:
        """The factors by role of what a method makes of several deltas, for a scaling of 1."""
        ...

    def measured(self) -> Measured:
        """The errors of all mixtures that were computed so far, summed up."""
        ...
