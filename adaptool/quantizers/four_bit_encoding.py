"""Plain values as bitsandbytes' 4-bit codes and scales, and what those decode to.

For a weight of n elements in blocks of b (see `bnb4` for what is stored):

    absmax[j] = max |W| over block j           at least 1e-38 in a last block cut short
    q[i]      = the entry of the table next to W[i] / absmax[i // b]
    nested: offset = mean(absmax); the rest in 8 bits of a dynamic table, in blocks of 256 that are
    scaled by their own largest magnitude

Source: bitsandbytes 0.50, `functional.py` (quantize_4bit, QuantState.as_dict) and
`backends/default/ops.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING

from adaptool.model.quantizer import Packed
from adaptool.quantizers.codebooks import (
    FOUR_BIT,
    Rounding,
    dynamic_codes,
    dynamic_table,
    midpoints,
)

if TYPE_CHECKING:
    import torch

NESTED_BLOCK = 256
OFFSET = "nested_offset"
# The longest text of a positive float32 in the digits of a float64: 1.2345678901234567e-05.
OFFSET_WIDTH = 22
# The smallest scale that is divided by.
_TINY = 1e-38
# Elements that quantize_dequantize holds in float32 at a time.
_CHUNK = 1 << 22


def state_length(packed: Packed) -> int:
    """Bytes of a nested weight's state, whose offset is known only when all of it is encoded.

    What is stored, or more where an offset might not fit; JSON allows spaces behind it.
    """
    return max(packed.roles["quant_state"].length, len(_state(packed, 0)) - 1 + OFFSET_WIDTH)


def _state(packed: Packed, offset: float) -> bytes:
    return json.dumps({**packed.settings["state"], OFFSET: offset}).encode()


class FourBitEncoder:
    """Encodes to bitsandbytes' own bytes; holds the float32 scales, a sixteenth of 16-bit values.

    With nested scales, three times that while they are settled.
    """

    def __init__(self, packed: Packed) -> None:
        """`packed` gives type, block size and whether scales are nested."""
        import torch

        self._packed = packed
        self._size: int = packed.settings["blocksize"]
        # Rows that hold whole blocks, so that no block lies in two tiles.
        self.granule = self._size // gcd(self._size, packed.columns)
        self._maxima = torch.empty(packed.roles["absmax"].elements)

    def measure(self, values: torch.Tensor, start: int) -> None:
        """Take in the blocks' largest magnitudes."""
        found = _maxima(values.reshape(-1), self._size)
        first = start * self._packed.columns // self._size
        self._maxima[first : first + len(found)] = found

    def settle(self) -> tuple[Packed, Mapping[str, torch.Tensor]]:
        """The scales, nested where they were, and the state that names their offset."""
        import torch

        packed, roles, maxima = self._packed, self._packed.roles, self._maxima
        if packed.settings["nested"] is None:
            dtype: torch.dtype = getattr(torch, str(roles["absmax"].dtype.torch))
            return packed, {"absmax": maxima.to(dtype).reshape(roles["absmax"].shape)}
        nested = _nested(maxima, "grid")
        offset = float(nested.offset)
        text = _state(packed, offset).ljust(state_length(packed))
        parts = {
            "absmax": nested.codes.to(torch.uint8).reshape(roles["absmax"].shape),
            "nested_absmax": nested.outer.reshape(roles["nested_absmax"].shape),
            "nested_quant_map": nested.table,
            "quant_state": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
        settings = {"nested": {**packed.settings["nested"], "offset": offset}}
        return replace(packed, settings={**packed.settings, **settings}), parts

    def encode(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Two codes a byte, the first in the high half; a last odd one beside the code of 0."""
        import torch

        flat = values.reshape(-1)
        first = start * self._packed.columns // self._size
        table = _table(self._packed.settings["quant_type"], flat.device)
        codes = _codes(flat, self._maxima[first:], self._size, table)
        if len(codes) % 2:
            zero = torch.bucketize(torch.zeros(1), midpoints(table), out_int32=True)
            codes = torch.cat([codes, zero])
        codes = codes.to(torch.uint8)
        return (codes[::2] << 4) | codes[1::2]


def quantize_dequantize(
    weight: torch.Tensor,
    *,
    quant_type: str = "nf4",
    double_quant: bool,
    blocksize: int = 64,
    rounding: Rounding = "grid",
) -> torch.Tensor:
    """What training with a 4-bit base saw of a plain `weight`: same shape, dtype and device.

    As bitsandbytes on a CPU, bit for bit. With `double_quant` the scales go through 8 bits, which
    needs the whole weight (their mean is taken away); `rounding` "nearest" does that as its CUDA
    kernels do. Without, blocks are independent. The mean is torch's own: its last bit depends on
    torch's threads and device.
    """
    import torch

    flat = weight.reshape(-1)
    maxima = _maxima(flat, blocksize)
    scales = _nested(maxima, rounding).restored if double_quant else maxima
    table = _table(quant_type, weight.device)
    decoded = torch.empty_like(flat)
    step = max(1, _CHUNK // blocksize) * blocksize
    for first in range(0, len(flat), step):
        part = flat[first : first + step]
        block = first // blocksize
        codes = _codes(part, maxima[block:], blocksize, table)
        spread = scales[block:, None].expand(-1, blocksize).reshape(-1)[: len(part)]
        decoded[first : first + step] = table[codes] * spread
    return decoded.reshape(weight.shape)


def _table(quant_type: str, device: torch.device) -> torch.Tensor:
    """The entries of a 4-bit type, ascending: for nf4 that is the order of the codes."""
    import torch

    return torch.tensor(FOUR_BIT[quant_type], dtype=torch.float32, device=device).sort().values


def _maxima(flat: torch.Tensor, size: int) -> torch.Tensor:
    """The largest magnitude of each block in float32; that of a ragged last one is never 0."""
    import torch

    full = len(flat) // size * size
    maxima = flat[:full].reshape(-1, size).abs().amax(dim=1).float()
    if full == len(flat):
        return maxima
    return torch.cat([maxima, flat[full:].abs().amax().float().clamp(min=_TINY)[None]])


def _codes(
    flat: torch.Tensor, maxima: torch.Tensor, size: int, table: torch.Tensor
) -> torch.Tensor:
    """The entry of an ascending table next to each value, the lower of two equally near.

    `maxima` begins with the first value's block.
    """
    import torch

    full = len(flat) // size
    # The reciprocal first, as the library does it; a ragged last block is divided.
    inverse = 1.0 / maxima[:full, None].clamp(min=_TINY)
    normed = (flat[: full * size].reshape(-1, size).float() * inverse).reshape(-1)
    if full * size < len(flat):
        normed = torch.cat([normed, flat[full * size :].float() / maxima[full]])
    return torch.bucketize(normed.clamp_(-1, 1), midpoints(table), out_int32=True)


@dataclass(frozen=True, slots=True)
class _Nested:
    """Scales in 8 bits: codes in `table`, their blocks' own scales, and the mean taken away."""

    codes: torch.Tensor
    outer: torch.Tensor
    offset: torch.Tensor
    table: torch.Tensor

    @property
    def restored(self) -> torch.Tensor:
        """The float32 scales that these decode to."""
        outer = self.outer[:, None].expand(-1, NESTED_BLOCK).reshape(-1)[: len(self.codes)]
        return self.table[self.codes] * outer + self.offset


def _nested(maxima: torch.Tensor, rounding: Rounding) -> _Nested:
    """Scales as double quantization stores them."""
    import torch

    offset = maxima.mean()
    centred = maxima - offset
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % NESTED_BLOCK))
    blocks = blocks.reshape(-1, NESTED_BLOCK)
    outer = blocks.abs().amax(dim=1)
    table = dynamic_table(maxima.device)
    codes = dynamic_codes(blocks * (1.0 / outer[:, None]), table, rounding)
    return _Nested(codes.reshape(-1)[: len(maxima)], outer, offset, table)
