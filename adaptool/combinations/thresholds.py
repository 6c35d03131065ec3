"""Exact magnitude thresholds of deltas that exist a tile at a time.

The key of an element is the bit pattern of |x| rounded to float32: as an integer it grows with the
magnitude. Two passes count keys, first their upper 16 bits, then the lower 15 of those that share
the upper bits in which the threshold lies: the result is the exact k-th largest key, whatever the
tiles. Elements whose key equals the threshold are all kept, so slightly more than k may be; no
element is preferred for its position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.method import Deltas

if TYPE_CHECKING:
    import torch

_LOWER_BITS = 15
_UPPER = 1 << 16
_LOWER = 1 << _LOWER_BITS


def kept_count(elements: int, density: float) -> int:
    """How many of `elements` a density keeps: rounded down as PEFT and mergekit do, at least 1."""
    return max(1, int(density * elements))


def keys(delta: torch.Tensor) -> torch.Tensor:
    """int32 keys of a float64 tile: larger where the magnitude is."""
    import torch

    return delta.abs().to(torch.float32).view(torch.int32)


def thresholds(deltas: Deltas, density: float) -> tuple[int, ...]:
    """For each adapter the key that the kept elements of its delta reach; 0 keeps all."""
    count = len(deltas.weights)
    out, inner = deltas.shape
    wanted = [kept_count(out * inner, density)] * count
    if density >= 1:
        return (0,) * count
    upper = [_kth(each, k) for each, k in zip(_counts(deltas, None), wanted, strict=True)]
    prefixes = [bin_ for bin_, _ in upper]
    lower = [_kth(each, k) for each, (_, k) in zip(_counts(deltas, prefixes), upper, strict=True)]
    return tuple(
        (prefix << _LOWER_BITS) | bin_ for prefix, (bin_, _) in zip(prefixes, lower, strict=True)
    )


def _counts(deltas: Deltas, prefixes: Sequence[int] | None) -> Iterator[torch.Tensor]:
    """Histograms of one pass: of the upper bits, or of the lower ones behind each prefix."""
    import torch

    bins = _UPPER if prefixes is None else _LOWER
    counts = torch.zeros((len(deltas.weights), bins), dtype=torch.int64)
    for _, tile in deltas.tiles():
        for index, delta in enumerate(tile):
            prefix = None if prefixes is None else prefixes[index]
            counts[index] += torch.bincount(_digits(delta, prefix), minlength=bins)
    return iter(counts)


def _digits(delta: torch.Tensor, prefix: int | None) -> torch.Tensor:
    key = keys(delta).flatten()
    if prefix is None:
        return key >> _LOWER_BITS
    return key[(key >> _LOWER_BITS) == prefix] & (_LOWER - 1)


def _kth(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest, and which of the largest inside that bin it is."""
    from_above = counts.flip(0).cumsum(0)
    place = int((from_above < k).sum())
    above = int(from_above[place - 1]) if place else 0
    return len(counts) - 1 - place, k - above
