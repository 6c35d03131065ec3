"""Tables of numbers that codes stand for, and the code of a number, as bitsandbytes has them.

Source: bitsandbytes 0.50, `functional.py` (get_4bit_type, create_dynamic_map),
`backends/default/ops.py` (quantize_4bit), `csrc/cpu_ops.cpp` and `csrc/kernels.cu` (the nearest
entry of the dynamic table).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# Quantiles of the normal distribution, scaled to [-1, 1].
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4_MAGNITUDES = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
# The table has one zero, without a sign, twice.
_FP4 = (*_FP4_MAGNITUDES, 0.0, *(-value for value in _FP4_MAGNITUDES[1:]))

FOUR_BIT: Mapping[str, Sequence[float]] = MappingProxyType({"nf4": _NF4, "fp4": _FP4})
"""The 16 numbers of a 4-bit type, in the order of their codes, before rounding to float32."""

Rounding = Literal["grid", "nearest"]
_GRID = 65535


def dynamic_table(device: torch.device) -> torch.Tensor:
    """The 256 numbers of the signed dynamic 8-bit type, ascending: 7 decades, ever more of each."""
    import torch

    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def midpoints(table: torch.Tensor) -> torch.Tensor:
    """Halfway between the neighbours of an ascending table: where one code ends."""
    return (table[:-1] + table[1:]) / 2


def dynamic_codes(values: torch.Tensor, table: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Codes in `table` of float32 values in [-1, 1].

    `nearest` is what the library's CUDA kernels take; of two that are equally near, the even code.
    `grid` is what its CPU kernel takes: the code nearest to the nearest of 65536 equal steps.
    """
    import torch

    if rounding == "grid":
        steps = torch.arange(_GRID + 1, dtype=torch.float32, device=values.device)
        codes = torch.bucketize(2 * steps / _GRID - 1, midpoints(table))
        return codes[_grid_steps(values)]
    edges = midpoints(table)
    low, high = torch.bucketize(values, edges), torch.bucketize(values, edges, right=True)
    return torch.where(low % 2 == 0, low, high)


def _grid_steps(values: torch.Tensor) -> torch.Tensor:
    # The kernel's last multiplication and addition are one fused operation, rounded once.
    half = (values.clamp(-1, 1) + 1) * 0.5
    return (half.double() * _GRID + 0.5).float().nan_to_num(0.0).long()
