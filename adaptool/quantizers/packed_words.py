"""Small unsigned integers in 32-bit words: the first in the lowest bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD = 32


def words_for(count: int, bits: int) -> int:
    """Words that `count` integers of `bits` bits fill."""
    return -(-count * bits // WORD)


def unpack_down(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(words, columns) int32 -> (integers, columns) int32: words follow each other downwards.

    Integers lie end to end, so that 32 of 3 bits share three words and two of them straddle.
    """
    import torch

    period = 3 if bits == 3 else 1
    columns, count = words.shape[1], period * WORD // bits
    groups = words.reshape(len(words) // period, period, columns)
    unpacked = torch.empty((len(groups), count, columns), dtype=torch.int32)
    for place in range(count):
        unpacked[:, place] = _field(groups, place * bits, bits)
    return unpacked.reshape(len(groups) * count, columns)


def unpack_across(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, words) int32 -> (rows, integers) int32: words follow each other to the right."""
    return unpack_down(words.T, bits).T


def _field(groups: torch.Tensor, start: int, bits: int) -> torch.Tensor:
    """Bits [start, start + bits) of every group of words."""
    import torch

    word, low = divmod(start, WORD)
    value: torch.Tensor = groups[:, word] >> low
    inside = WORD - low
    if inside >= bits:
        return torch.bitwise_and(value, 2**bits - 1)
    # The shift was arithmetic: what came in from above is the sign, not the next word.
    above = groups[:, word + 1] << inside
    return torch.bitwise_or(value & (2**inside - 1), above & (2**bits - 1))
