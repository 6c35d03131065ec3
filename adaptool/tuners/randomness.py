"""Random tensors that an adapter does not store: drawn again as they were before training.

torch's CPU generator gives the same numbers on every machine and in every release since 1.6; PEFT
relies on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int]


@functools.lru_cache(maxsize=2)
def kaiming_uniform(key: int, shapes: Sequence[Shape]) -> tuple[torch.Tensor, ...]:
    """Matrices (rows, fan) in float32, one after the other from one generator seeded with `key`.

    Uniform within sqrt(6 / fan). Source: PEFT 0.21.2, `_kaiming_init` of VeRA and RandLoRA.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(key)
    drawn = []
    for shape in shapes:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        drawn.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return tuple(drawn)


# From here on torch shuffles in another way, with numbers of 64 bits.
_LONG = (2**32 - 1) // 20


@functools.lru_cache(maxsize=16)
def drawn_places(seed: int, total: int, count: int) -> torch.Tensor:
    """`count` of the numbers below `total`, none of them twice, in the order of the draw.

    They are the first `count` of `torch.randperm(total)`, which takes seconds and 8 bytes for each
    number of a large total; what it does for the first of them needs neither. Source: PEFT 0.21.2,
    the places of a spectrum in FourierFT and WaveFT; torch's `randperm_cpu`.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    if total >= _LONG or count > total // 16:
        # A copy: what was not chosen must not stay in memory.
        return torch.randperm(total, generator=generator)[:count].clone()
    halves = torch.empty((count + 1) // 2, dtype=torch.int64)
    halves.random_(-(2**63), None, generator=generator)
    draws = torch.stack((halves >> 32, halves), dim=1).bitwise_and_(2**32 - 1)
    return torch.tensor(_shuffled(draws.reshape(-1)[:count].tolist(), total), dtype=torch.int64)


def _shuffled(draws: Sequence[int], total: int) -> list[int]:
    """The first places of 0, 1, ... `total` - 1 after Fisher and Yates, one for each draw."""
    moved: dict[int, int] = {}
    found = []
    for place, draw in enumerate(draws):
        other = place + draw % (total - place)
        found.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return found
