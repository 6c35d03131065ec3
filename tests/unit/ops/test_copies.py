"""Whether an adapter's copy is the base's own tensor: dtype, shape and every byte."""

from __future__ import annotations

import pytest

from adaptool.dtypes import DTYPES
from adaptool.ops.copies import BLOCK, same_bytes
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource


def _ref(content: bytes, shape: tuple[int, ...], dtype: str = "U8", start: int = 0) -> TensorRef:
    source = MemorySource(b"\x00" * start + content)
    return TensorRef("copy", DTYPES[dtype], shape, start, len(content), source)


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, BLOCK + 6])
def test_one_byte_anywhere_tells_them_apart(place: int) -> None:
    """Blocks are read one by one; the last is shorter."""
    content = bytes(BLOCK + 7)
    other = bytearray(content)
    other[place] = 1
    shape = (BLOCK + 7,)
    assert same_bytes(_ref(content, shape), _ref(content, shape, start=5))
    assert not same_bytes(_ref(content, shape), _ref(bytes(other), shape))


def test_shape_and_dtype_count() -> None:
    """The same bytes mean something else under another shape or dtype."""
    assert not same_bytes(_ref(bytes(8), (2, 4)), _ref(bytes(8), (8,)))
    assert not same_bytes(_ref(bytes(8), (4,), "F16"), _ref(bytes(8), (4,), "BF16"))
