"""The experts' factors of one projection as the stacks that runtimes keep them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaptool.model.adapter import Delta
from adaptool.model.derived import padded, scaled, stacked, zeros
from adaptool.store.tensors import TensorRef

# Scales that are alpha over rank differ by this much although they are meant to be the same.
_ROUNDING = 1e-12
Stacked = Callable[[str], tuple[str, int] | None]


@dataclass(frozen=True, slots=True)
class Group:
    """What becomes one pair of tensors: a module's delta, or all experts' of one projection.

    `deltas` by expert, None for one without a delta; `stacked` says that they are experts.
    """

    name: str
    deltas: tuple[Delta | None, ...]
    stacked: bool

    @property
    def present(self) -> list[Delta]:
        """The experts that have a delta."""
        return [delta for delta in self.deltas if delta is not None]

    @property
    def rank(self) -> int:
        """The largest."""
        return max(delta.terms.rank or 1 for delta in self.present)


def grouped(deltas: Iterable[Delta], place_of: Stacked) -> list[Group]:
    """Modules alone, experts by projection; as many experts in each as the adapter knows of."""
    singles: dict[str, Delta] = {}
    stacks: dict[str, dict[int, Delta]] = {}
    for delta in deltas:
        found = place_of(delta.module)
        if found is None:
            singles[delta.module] = delta
        else:
            stacks.setdefault(found[0], {})[found[1]] = delta
    count = max((max(stack) + 1 for stack in stacks.values()), default=0)
    alone = [Group(name, (delta,), stacked=False) for name, delta in singles.items()]
    together = [
        Group(name, tuple(stack.get(place) for place in range(count)), stacked=True)
        for name, stack in stacks.items()
    ]
    return alone + together


def factors(group: Group, rank: int, ratio: Mapping[str, float]) -> tuple[TensorRef, TensorRef]:
    """A (r, in) and B (out, r) of one rank, B times the module's ratio; stacked for experts."""
    pairs = [
        None if delta is None else factor_pair(delta, rank, ratio.get(delta.module, 1.0))
        for delta in group.deltas
    ]
    known = next(pair for pair in pairs if pair is not None)
    if not group.stacked:
        return known
    first = [_blank(known[0]) if pair is None else pair[0] for pair in pairs]
    second = [_blank(known[1]) if pair is None else pair[1] for pair in pairs]
    return stacked(first), stacked(second)


def _blank(ref: TensorRef) -> TensorRef:
    return zeros(ref.name, ref.dtype, ref.shape)


def factor_pair(delta: Delta, rank: int, ratio: float) -> tuple[TensorRef, TensorRef]:
    """A delta's A (r, in) and B (out, r), zeros added up to `rank`, B times `ratio`."""
    a = delta.roles.get("A") or delta.roles["embedding_A"]
    b = delta.roles.get("B") or delta.roles["embedding_B"]
    return padded(a, rank, 0), scaled(padded(b, rank, 1), ratio)


def most_frequent(values: Sequence[float]) -> float:
    """The value other than 0 that most have, of several the largest; 0 where there is none."""
    counts = Counter(value for value in values if value)
    return max(counts, key=lambda value: (counts[value], value), default=0.0)


def ratio_of(scaling: float, common: float) -> float:
    """What a factor is multiplied with where one scale serves all; 1 but for rounding is 1."""
    if not common:
        return 0.0
    ratio = scaling / common
    return 1.0 if abs(ratio - 1.0) < _ROUNDING else ratio
