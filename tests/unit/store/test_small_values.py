"""The torch-free door for small tensors."""

from __future__ import annotations

import struct

import pytest

from adaptool.dtypes import DTYPES
from adaptool.errors import ResourceError
from adaptool.findings import Code
from adaptool.store.header import encode_header, read_header
from adaptool.store.small_values import read_small
from memory_source import MemorySource


def test_alpha_is_read_without_torch() -> None:
    """A scalar's bytes come as they lie in the file."""
    raw = encode_header([("x.alpha", DTYPES["F32"], ())], None) + struct.pack("<f", 16.0)
    (tensor,) = read_header(MemorySource(raw)).tensors.values()
    assert struct.unpack("<f", read_small(tensor)) == (16.0,)


@pytest.mark.parametrize(("size", "passes"), [(65536, True), (65537, False)])
def test_limit_is_64_kib(size: int, passes: bool) -> None:
    """One byte more than 64 KiB is refused, naming file, tensor and sizes."""
    raw = encode_header([("x", DTYPES["U8"], (size,))], None) + bytes(size)
    tensor = read_header(MemorySource(raw)).tensors["x"]
    if passes:
        assert read_small(tensor) == bytes(size)
        return
    with pytest.raises(ResourceError) as caught:
        read_small(tensor)
    assert caught.value.code is Code.LIMIT_EXCEEDED
    assert (caught.value.file, caught.value.tensor) == ("memory.safetensors", "x")
    assert "65537 bytes" in caught.value.message
