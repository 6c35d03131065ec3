"""New values as 8-bit floats with scales to multiply by, each of the largest magnitude it covers.

    amax[j] = max |W| over block j
    s[j]    = 1 / (448 / amax[j])      448: the type's largest; 1 where amax is 0
    q       = W * (448 / amax[j])      in float32, to nearest, ties to even

Where scales are powers of two they are rounded up, where they are stored in 16 bits to nearest; q
is then W times the reciprocal of what is stored. Source: transformers 5.23,
`integrations/finegrained_fp8.py` (Fp8Quantize).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers.scale_grid import grid_of, places, scaled

if TYPE_CHECKING:
    import torch


class Float8Encoder:
    """Encodes a weight whose scales lie on `packed.settings["grid"]`; holds two floats a block."""

    granule = 1

    def __init__(self, packed: Packed, role: str, *, powers: bool = False) -> None:
        """`role` is the scales'; with `powers` they are powers of two, whatever their dtype."""
        import torch

        self._packed, self._role = packed, role
        self._grid = grid_of(packed)
        scales = packed.roles[role]
        self._codes_dtype: torch.dtype = getattr(torch, str(packed.roles["weight"].dtype.torch))
        self._scales_dtype: torch.dtype = getattr(torch, str(scales.dtype.torch))
        self._powers = powers or scales.dtype.name == "F8_E8M0"
        across = self._grid.shape[1]
        self._largest = torch.zeros(prod(scales.shape) // across, across)
        self._factors = self._largest

    def measure(self, values: torch.Tensor, start: int) -> None:
        """Take in the largest magnitude of each block."""
        import torch

        rows, columns = values.shape
        across, width = self._grid.shape[1], self._grid.width
        padded = torch.nn.functional.pad(values.abs(), (0, across * width - columns))
        largest = padded.reshape(rows, across, width).amax(dim=2).float()
        index = places(self._grid, start, start + rows)[:, None].expand_as(largest)
        self._largest.scatter_reduce_(0, index, largest, "amax")

    def settle(self) -> tuple[Packed, Mapping[str, torch.Tensor]]:
        """The scales in their own dtype and shape."""
        import torch

        one = torch.ones(())
        most = torch.finfo(self._codes_dtype).max
        factors = torch.where(self._largest > 0, most / self._largest, one)
        scales = 1.0 / factors
        if self._powers:
            tiny = torch.finfo(torch.float32).tiny
            scales = torch.pow(2.0, torch.ceil(torch.log2(scales.clamp(min=tiny))))
        stored = scales.to(self._scales_dtype)
        if self._powers or stored.element_size() < 4:
            factors = 1.0 / stored.float()
        self._check(factors, stored.float())
        self._factors = factors
        return self._packed, {self._role: stored.reshape(self._packed.roles[self._role].shape)}

    def encode(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """The bytes of the codes; a value that the scale cannot bring into range is an error."""
        import torch

        factors = self._factors[places(self._grid, start, start + len(values))]
        codes = scaled(values.float(), factors, self._grid.width).to(self._codes_dtype)
        self._check(codes.float())
        return codes.view(torch.uint8).reshape(-1)

    def _check(self, *values: torch.Tensor) -> None:
        import torch

        bad = sum(int((~torch.isfinite(value)).sum()) for value in values)
        if bad:
            message = f"{bad} merged values or scales are out of the range of the stored format"
            raise InputError(
                message,
                code=Code.RESULT_NOT_FINITE,
                file=self._packed.roles["weight"].file,
                tensor=self._packed.name,
                hint="--quantized touched writes this weight in 16 bit",
            )
