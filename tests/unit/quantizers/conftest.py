"""Stored tensors in memory, and what the registered quantizer of a packed weight makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from adaptool.dtypes import BY_TORCH_NAME
from adaptool.model.quantizer import Packed
from adaptool.quantizers import quantizers
from adaptool.quantizers.decoding import StoredParts
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]


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
