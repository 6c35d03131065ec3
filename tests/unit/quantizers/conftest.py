"""Stored tensors in memory, and what the registered quantizer of a packed weight makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from adaptool.dtypes import BY_TORCH_NAME
from adaptool.model.quantizer import Encoding, Packed
from adaptool.quantizers import quantizers
from adaptool.quantizers.decoding import StoredParts
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Encode = Callable[..., tuple[Packed, dict[str, torch.Tensor]]]


def _ref(name: str, tensor: torch.Tensor) -> TensorRef:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
    return TensorRef(name, dtype, tuple(tensor.shape), 0, len(content), MemorySource(content))


@pytest.fixture
def store() -> Store:
    """Tensors by name as a checkpoint that holds them."""
    return lambda tensors: {name: _ref(name, tensor) for name, tensor in tensors.items()}


@pytest.fixture
def decode() -> Decode:
    """Rows [start, stop) of a packed weight, all of them unless told."""

    def decoded(packed: Packed, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stop = packed.rows if stop is None else stop
        return quantizers()[packed.scheme].decode(StoredParts(packed), packed, start, stop)

    return decoded


@pytest.fixture
def encode() -> Encode:
    """A weight's parts for new values, by role, made in tiles of `height` rows or a few more."""

    def encoded(
        packed: Packed, values: torch.Tensor, height: int = 1 << 20
    ) -> tuple[Packed, dict[str, torch.Tensor]]:
        quantizer = quantizers()[packed.scheme]
        assert isinstance(quantizer, Encoding)
        encoder = quantizer.encoder(packed)
        step = -(-height // encoder.granule) * encoder.granule
        matrix = values.reshape(-1, packed.columns)
        tiles = [(matrix[start : start + step], start) for start in range(0, len(matrix), step)]
        for tile, start in tiles:
            encoder.measure(tile, start)
        again, parts = encoder.settle()
        raw = torch.cat([encoder.encode(tile, start) for tile, start in tiles])
        codes = packed.roles["weight"]
        made = {**parts, "weight": raw.view(getattr(torch, str(codes.dtype.torch)))}
        shapes = quantizer.rewritten(packed)
        assert set(made) == set(shapes)
        return again, {role: made[role].reshape(shapes[role]) for role in made}

    return encoded
