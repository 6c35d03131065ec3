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


def e2m1(pairs: torch.Tensor, dtype: torch.dtype, *, factor: float = 1) -> torch.Tensor:
    """(..., bytes) uint8 -> (..., 2 * bytes): two codes a byte, the first in the low half.

    The numbers times `factor`, which is a power of two, in `dtype`.
    """
    import torch

    byte = torch.arange(256)
    table = torch.tensor(E2M1, dtype=dtype) * factor
    numbers = torch.stack((table[byte & 15], table[byte >> 4]), dim=1)
    found = numbers.index_select(0, pairs.reshape(-1).int())
    return found.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])


def e8m0(codes: torch.Tensor, *, factor: float = 1) -> torch.Tensor:
    """uint8 exponents -> float32 powers of two, 2 ** (code - 127) * factor, of the same shape."""
    import torch

    powers = [2.0 ** (code - 127) * factor for code in range(256)]
    return torch.tensor(powers, dtype=torch.float64).float()[codes.int()]
