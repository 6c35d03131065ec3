"""Rows of a plan over bytes in memory, for tests of the engine's parts."""

from __future__ import annotations

from math import prod
from typing import Any

from adaptool.dtypes import DTYPES
from adaptool.model.plan import Blend, Row
from adaptool.store.source import Source
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource


def ref(
    content: bytes, dtype: str, shape: tuple[int, ...], *, name: str = "x", offset: int = 0
) -> TensorRef:
    """A tensor whose bytes lie at `offset` of a source of their own."""
    return placed(MemorySource(bytes(offset) + content), dtype, shape, name=name, offset=offset)


def placed(
    source: Source, dtype: str, shape: tuple[int, ...], *, name: str = "x", offset: int = 0
) -> TensorRef:
    """A tensor at `offset` of `source`."""
    length = prod(shape) * DTYPES[dtype].bits // 8
    return TensorRef(name, DTYPES[dtype], shape, offset, length, source)


def row(source: TensorRef, *, file: str = "f", offset: int = 0, **fields: Any) -> Row:
    """An output row that is a copy of `source`, unless `fields` say otherwise."""
    seat = {"dtype": source.dtype, "shape": source.shape, "length": source.length, **fields}
    return Row(name=source.name, file=file, offset=offset, source=source, **seat)


def computed(shape: tuple[int, ...], *, fold: int = 1, name: str = "x") -> Row:
    """A row that is no copy; its bytes are never read."""
    source = placed(MemorySource(b""), "F32", shape, name=name)
    return row(source, fold=fold, blends=(Blend(0, source, 1.0),))
