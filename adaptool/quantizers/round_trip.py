"""A plain weight as QLoRA's training saw it: quantized to 4 bit and back (Dettmers et al. 2023).

The adapter learned beside nf4 weights with double quantization. A base that was kept in 16 bit can
be turned into what those decode to, bit for bit as bitsandbytes does it on a CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from adaptool.quantizers.four_bit_encoding import quantize_dequantize
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch


class RoundTripSource:
    """The bytes of one weight after nf4, with double quantization unless it is LoftQ's, and back.

    The scales' own scale is of the whole weight, so the whole weight is held while it is read.
    `mean_square_error` is of the round trip, known once something was read.
    """

    def __init__(self, ref: TensorRef, *, loftq: bool = False) -> None:
        """`ref` is the plain weight; nothing is read yet."""
        self._ref, self._loftq = ref, loftq
        self._lock = threading.Lock()
        self._decoded: memoryview | None = None
        self.mean_square_error: float | None = None

    @property
    def name(self) -> str:
        """The file of the plain weight."""
        return self._ref.file

    @property
    def size(self) -> int:
        """Bytes of the weight."""
        return self._ref.length

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Bytes of the decoded weight."""
        with self._lock:
            if self._decoded is None:
                self._decoded = self._round_trip()
            decoded = self._decoded
        buffer[:] = decoded[offset : offset + len(buffer)]

    def _round_trip(self) -> memoryview:
        import torch

        raw = torch.empty(self._ref.length, dtype=torch.uint8)
        self._ref.source.read_into(self._ref.offset, raw.numpy().data)
        dtype: torch.dtype = getattr(torch, str(self._ref.dtype.torch))
        with torch.inference_mode():
            weight = raw.view(dtype).reshape(self._ref.shape)
            seen = weight.float() if self._loftq else weight  # PEFT's loftq_init rounds float32
            double = not self._loftq
            decoded = quantize_dequantize(seen, quant_type="nf4", double_quant=double).to(dtype)
            error = (decoded.float() - weight.float()).square_().mean(dtype=torch.float64)
            self.mean_square_error = float(error)
            return decoded.view(torch.uint8).reshape(-1).numpy().data

    def forget(self) -> None:
        """Let go of the decoded weight."""
        with self._lock:
            self._decoded = None

    def beneath(self) -> Iterable[Source]:
        """The file that holds the weight."""
        return [self._ref.source]

    def check_unchanged(self) -> None:
        """IntegrityError where the file changed since it was opened."""
        check_unchanged(self._ref.source)

    def close(self) -> None:
        """Same as forget: the file belongs to the checkpoint."""
        self.forget()


def round_trip(ref: TensorRef, *, loftq: bool = False) -> TensorRef:
    """The weight after the round trip, as an ordinary tensor."""
    source = RoundTripSource(ref, loftq=loftq)
    return TensorRef(ref.name, ref.dtype, ref.shape, 0, ref.length, source)
