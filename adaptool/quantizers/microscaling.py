"""Elements and scales of the microscaling (MX) formats: E2M1 in half bytes, E8M0 in bytes.

Source: OCP Microscaling Formats 1.0, with the one difference that libraries make: the scale 255,
which the text calls not a number, is 2 ** 128 to them, which float32 has as infinity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
"""The 16 numbers of a 4-bit float in the order of their codes; code 8 is minus zero."""


def e2m1(pairs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(..., bytes) uint8 -> (..., 2 * bytes): two codes a byte, the first in the low half."""
    import torch

    byte = torch.arange(256)
    table = torch.tensor(E2M1, dtype=dtype)
    numbers = torch.stack((table[byte & 15], table[byte >> 4]), dim=1)
    found = numbers.index_select(0, pairs.reshape(-1).int())
    return found.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])


def e8m0(codes: torch.Tensor) -> torch.Tensor:
    """uint8 exponents -> float32 powers of two, 2 ** (code - 127), of the same shape."""
    import torch

    powers = torch.tensor([*(2.0 ** (code - 127) for code in range(255)), torch.inf])
    return powers[codes.int()]
