"""Wavelets' filters, and the inverse transform of one level.

`wavelets.json` holds the scaling filter of every family that PEFT 0.21.2 can compute with:
Daubechies' extremal-phase (db) and least-asymmetric (sym) wavelets and coiflets, normalised to a
sum of sqrt(2). PEFT's numbers for coif4 are no orthonormal filter; adapters are trained with them,
so they stand here as they are. It names longer families too, but fails to merge them: it has no
numbers for them, or for coif5 too many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Filter = tuple[float, ...]


@lru_cache(maxsize=1)
def scaling_filters() -> Mapping[str, Filter]:
    """The low-pass reconstruction filter of each family, an even number of taps."""
    folder = resources.files("adaptool.tuners")
    content = json.loads(folder.joinpath("wavelets.json").read_text(encoding="utf-8"))
    return {name: tuple(taps) for name, taps in content.items()}


def wavelet_filter(scaling: Filter) -> Filter:
    """The high-pass filter that goes with a scaling filter: reversed, every second tap negated."""
    return tuple(-tap if place % 2 else tap for place, tap in enumerate(reversed(scaling)))


def synthesis(bands: torch.Tensor, scaling: Filter) -> torch.Tensor:
    """(2, n, ...) smooth and detail coefficients -> (2 n - 2 + taps, ...), nothing cut off."""
    count, taps = bands.shape[1], len(scaling)
    found = bands.new_zeros((2 * count - 2 + taps, *bands.shape[2:]))
    for place, (low, high) in enumerate(zip(scaling, wavelet_filter(scaling), strict=True)):
        reached = found[place : place + 2 * count - 1 : 2]
        reached.add_(bands[0], alpha=low).add_(bands[1], alpha=high)
    return found
