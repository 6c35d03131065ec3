"""Correct rounding and distances in steps of a dtype, independent of the engine's."""

from __future__ import annotations

import torch

_PATTERN = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def nearest(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`exact` (float64) rounded once, to nearest, ties to even."""
    guess = exact.to(torch.float32).to(dtype)
    if dtype is torch.float32:
        return guess
    bits = guess.contiguous().view(_PATTERN[dtype])
    best, error = bits, _error(bits, exact, dtype)
    for other in (bits - 1, bits + 1):
        distance = _error(other, exact, dtype)
        better = (distance < error) | ((distance == error) & (other % 2 == 0))
        best, error = torch.where(better, other, best), torch.where(better, distance, error)
    return best.view(dtype)


def _error(bits: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Below zero's pattern lies that of the largest NaN: no candidate.
    return (bits.view(dtype).double() - exact).abs().nan_to_num(nan=torch.inf)


def steps(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """How many values of the dtype lie between the two; -0 and 0 are the same."""
    ordered = []
    for value in (left, right):
        bits = value.contiguous().view(_PATTERN[value.dtype]).long()
        lowest = torch.iinfo(_PATTERN[value.dtype]).min
        ordered.append(torch.where(bits < 0, lowest - bits, bits))
    return (ordered[0] - ordered[1]).abs()
