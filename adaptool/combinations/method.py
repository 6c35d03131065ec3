"""The words of this room: what a method declares, what it is given, what it gives back.

Adapters are numbered t = 1..T. Adapter t changes a module's weight by its delta D_t = B_t A_t (its
scaling included) and takes part with weight w_t. What the papers call a task vector is here
tau_t = w_t D_t: a weight multiplies its adapter's delta before anything else looks at it, so a
negative weight subtracts, one adapter alone at weight w gives w D, and an adapter of weight 0 is
not there at all (it is not counted in T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Space(StrEnum):
    """What a method works on, from cheapest to dearest."""

    EXACT = "exact"  # stacked factors: the weighted sum itself
    FACTORS = "factors"  # the factors by name: not a function of the deltas
    CORE = "core"  # the deltas in common bases, (sum of ranks) squared numbers each
    DELTA = "delta"  # the deltas, element by element, a tile at a time


class Majority(StrEnum):
    """How the sign of an element is elected: by the sum of the values, or one vote each."""

    TOTAL = "total"
    FREQUENCY = "frequency"


@dataclass(frozen=True, slots=True)
class Method:
    """A file's declaration. `needs_rank`: the result has no natural rank, so one must be given."""

    title: str
    space: Space
    needs_rank: bool = True
    seeded: bool = False
    takes_density: bool = False
    takes_majority: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller may choose; a method ignores what its declaration does not name.

    `density` in (0, 1] is the share of elements kept. `rank` truncates the result; None keeps it.
    """

    rank: int | None = None
    density: float = 1.0
    majority: Majority = Majority.TOTAL
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Factored:
    """One adapter's delta of one module: left (out, r) @ right (r, in).

    The adapter's scaling is already in `left`; `scaling` says how much that was, for `linear`,
    which needs the factors as they were trained. `place` is the adapter's position in the
    caller's list, which random draws are keyed by.
    """

    left: torch.Tensor
    right: torch.Tensor
    weight: float = 1.0
    place: int = 0
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the delta."""
        return self.left.shape[0], self.right.shape[1]


@dataclass(frozen=True, slots=True)
class Combined:
    """A module's merged delta as left (out, k) @ right (k, in), float64.

    `relative_error` is |merged - left right|_F / |merged|_F, `merged` being what the method
    defines before truncation (for `linear`: the exact weighted sum it stands for); it is infinite
    where `merged` is 0 and the factors are not. `exact` says that nothing was cut: the factors are
    `merged` to float64 rounding.
    """

    left: torch.Tensor
    right: torch.Tensor
    relative_error: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Spectrum:
    """left (m, k) diag(values) right (k, n) with orthonormal columns and rows, leading first."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True, slots=True)
class Cores:
    """The deltas of the active adapters in common bases: D_t = U_B M_t V_A.

    `matrices` are the M_t (R_out, R_in), `weights` the w_t; `shape` is the delta's (out, in).
    """

    matrices: tuple[torch.Tensor, ...]
    weights: tuple[float, ...]
    shape: tuple[int, int]

    def weighted(self) -> list[torch.Tensor]:
        """The task vectors w_t M_t."""
        return [weight * core for weight, core in zip(self.weights, self.matrices, strict=True)]


Tile = tuple[slice, list["torch.Tensor"]]


class Deltas(Protocol):
    """The deltas of the active adapters of one module, made again each time they are asked for."""

    @property
    def name(self) -> str:
        """The module, which random draws are keyed by."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        ...

    @property
    def weights(self) -> Sequence[float]:
        """The w_t, none of them 0."""
        ...

    @property
    def places(self) -> Sequence[int]:
        """Each adapter's position in the caller's list."""
        ...

    def tiles(self) -> Iterator[Tile]:
        """Slices of rows in order, each with the T unweighted pieces (rows, in), float64."""
        ...


class Rule(Protocol):
    """A method that has seen what it must see: now it merges any tile alone."""

    def apply(self, rows: slice, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The merged piece (rows, in) of the T unweighted pieces of these rows."""
        ...


class FactorMethod(Protocol):
    """A file of space EXACT or FACTORS."""

    METHOD: Method

    def merge(
        self, parts: Sequence[Factored], options: Options
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors (out, k), (k, in) of the result, before truncation; `parts` are active."""
        ...


class CoreMethod(Protocol):
    """A file of space CORE."""

    METHOD: Method

    def merge(self, cores: Cores, options: Options) -> Spectrum:
        """The merged core, its directions in the order in which truncation keeps them."""
        ...


class DeltaMethod(Protocol):
    """A file of space DELTA."""

    METHOD: Method

    def rule(self, deltas: Deltas, options: Options) -> Rule:
        """The rule for this module, made in as many passes over `deltas` as it needs."""
        ...


AnyMethod = FactorMethod | CoreMethod | DeltaMethod
