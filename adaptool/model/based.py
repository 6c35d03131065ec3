"""Deltas where they stand in a base, and what they make of it: the seam to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from adaptool.model.adapter import Terms
from adaptool.model.algebra import Measured
from adaptool.model.extraction import Difference
from adaptool.model.plan import Row
from adaptool.model.view import View


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the base under the deltas of one parameter, and the view they all have of it."""

    row: Row
    view: View


@dataclass(frozen=True, slots=True)
class Change:
    """The deltas of one parameter on their base: W becomes W + sum of weight * (f(W) - W).

    `places` together are all of the parameter, each element once. `terms` are those of any of the
    deltas; `transposed`: the tensors hold (in, out).
    """

    name: str
    terms: Terms
    places: tuple[Placed, ...]
    transposed: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(matrices, rows, columns) of the parameter as the base stores it."""
        terms = self.terms
        size = (terms.inner, terms.out) if self.transposed else (terms.out, terms.inner)
        return (max(1, terms.experts), *size)

    @property
    def elements(self) -> int:
        """Elements of the parameter."""
        return prod(self.shape)


class BaseWeights(Protocol):
    """Computes on a base's weights, in float64 and a tile at a time."""

    def difference(self, change: Change) -> Difference:
        """What the deltas add, as something to be factored; nothing is read before that."""
        ...

    def errors(self, pairs: Sequence[tuple[Change, Change]]) -> list[Measured]:
        """Of (wanted, had), changes of one W: |had - wanted|^2, and |wanted - W|^2."""
        ...
