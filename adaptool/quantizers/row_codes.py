"""Integers of 1 to 8 bits that lie end to end along a row of 32-bit words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD = 32


def signed(
    words: torch.Tensor, bits: int, count: int, dtype: torch.dtype, *, skip: int = 0
) -> torch.Tensor:
    """(rows, words) int32 -> (rows, count) in `dtype`: integers that were stored plus half a range.

    The first lies in the lowest bits, `skip` bits from the beginning of its row. They are exact in
    any float of 8 significant bits.
    """
    import torch

    # Flat first: one column of a transpose counts as contiguous, and does not view as bytes.
    rows, width = words.shape
    raw = words.contiguous().reshape(-1).view(torch.uint8).reshape(rows, width * WORD // 8)
    if bits == 4 and not skip:
        return _halves(raw, dtype)[:, :count]
    codes = _fields(raw, bits, count, skip)
    return codes.sub_(2 ** (bits - 1)).to(dtype)


def _halves(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    byte = torch.arange(256)
    pairs = torch.stack(((byte & 15) - 8, (byte >> 4) - 8), dim=1).to(dtype)
    return pairs.index_select(0, raw.reshape(-1).int()).reshape(len(raw), 2 * raw.shape[1])


def _fields(raw: torch.Tensor, bits: int, count: int, skip: int) -> torch.Tensor:
    """Unsigned integers as int16: none spans more than two bytes."""
    import torch

    places = skip + torch.arange(count) * bits
    if bits == 8 and not skip % 8:
        return raw[:, places // 8].to(torch.int16)
    padded = torch.nn.functional.pad(raw, (0, 1)).to(torch.int32)
    both = padded[:, places // 8] + padded[:, places // 8 + 1] * 256
    shifted: torch.Tensor = both >> (places % 8).to(torch.int32)
    return shifted.bitwise_and_(2**bits - 1).to(torch.int16)
