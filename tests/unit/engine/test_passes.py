"""Sums over stored tensors, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from adaptool.dtypes import BY_TORCH_NAME, DTYPES
from adaptool.engine import passes
from adaptool.model.view import Span, View, whole
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource
from small_pairs import Array, encoded


def ref(values: Array, dtype: str = "float32") -> TensorRef:
    """A tensor in memory."""
    raw = encoded(values, dtype)
    return TensorRef("w", BY_TORCH_NAME[dtype], values.shape, 0, len(raw), MemorySource(raw))


def drawn(seed: int, *shape: int) -> Array:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks even in small tensors."""
    monkeypatch.setattr(passes, "BLOCK_ELEMENTS", 64)


def test_comparison_is_numpys() -> None:
    """Inner product, both norms and the distance, in float64."""
    a, b = drawn(1, 13, 17), drawn(2, 13, 17)
    found = passes.compare_tensors(ref(a), ref(b))
    x, y = a.astype(float).ravel(), b.astype(float).ravel()
    assert found.inner == pytest.approx(x @ y, rel=1e-12)
    assert found.first == pytest.approx(x @ x, rel=1e-12)
    assert found.second == pytest.approx(y @ y, rel=1e-12)
    assert found.difference == pytest.approx(((x - y) ** 2).sum(), rel=1e-12)


def test_dtypes_may_differ() -> None:
    """bfloat16 against float32: the difference is what rounding took, nothing else."""
    values = drawn(3, 9, 9)
    rounded = np.frombuffer(encoded(values, "bfloat16"), "<u2").astype("<u4") << 16
    exact = rounded.view("<f4").reshape(9, 9)
    assert passes.compare_tensors(ref(exact), ref(values, "bfloat16")).difference == 0.0
    found = passes.compare_tensors(ref(values), ref(values, "bfloat16"))
    expected = np.linalg.norm(values.astype(float) - exact) / np.linalg.norm(values.astype(float))
    assert found.relative_error == pytest.approx(expected, rel=1e-9)


def test_equal_bytes_differ_in_nothing_even_where_they_are_nan() -> None:
    """A cosine is unknown there, a difference is none."""
    values = drawn(4, 100)
    values[70] = math.nan
    found = passes.compare_tensors(ref(values), ref(values))
    assert found.difference == 0.0
    assert (found.cosine, found.relative_error) == (None, 0.0)
    other = values.copy()
    other[70] = 1.0
    assert passes.compare_tensors(ref(values), ref(other)).relative_error is None


def test_integers_and_unknown_element_types_can_be_compared() -> None:
    """Whole numbers by value, sub-byte elements by their bytes."""
    raw = np.arange(90, dtype="<i8").tobytes()
    one = TensorRef("i", DTYPES["I64"], (90,), 0, len(raw), MemorySource(raw))
    assert passes.compare_tensors(one, one).difference == 0.0
    packed = TensorRef("f", DTYPES["F4"], (720,), 0, 360, MemorySource(bytes(360)))
    other = TensorRef("f", DTYPES["F4"], (720,), 0, 360, MemorySource(bytes(359) + b"\x10"))
    assert passes.compare_tensors(packed, packed).difference == 0.0
    assert passes.compare_tensors(packed, other).difference > 0


VIEWS: dict[str, tuple[tuple[int, ...], View, Any]] = {
    "whole": ((12, 10), View(whole(12), whole(10)), np.s_[:, :]),
    "rows of a fused weight": ((12, 10), View(Span(4, 4), whole(10)), np.s_[4:8]),
    "every other row": ((12, 10), View(Span(1, 6, step=2), whole(10)), np.s_[1::2]),
    "columns": ((12, 10), View(whole(12), Span(3, 5)), np.s_[:, 3:8]),
    "heads": ((12, 10), View(Span(2, 2, blocks=2, stride=6), whole(10)), np.s_[[2, 3, 8, 9]]),
    "an expert": ((3, 4, 10), View(Span(4, 4), whole(10), fold=2), np.s_[1]),
    "a kernel": ((12, 2, 5), View(whole(12), whole(10)), np.s_[:]),
    "a vector": ((12,), View(Span(3, 4), whole(1)), np.s_[3:7]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_squares_are_those_of_the_view(name: str) -> None:
    """The elements that a view names, and no others."""
    shape, view, chosen = VIEWS[name]
    values = drawn(5, *shape)
    expected = (values.astype(float)[chosen] ** 2).sum()
    assert passes.squares(ref(values), view) == pytest.approx(expected, rel=1e-12)


def test_squares_without_a_view_are_of_everything() -> None:
    """All elements, whatever the blocks; an empty tensor has none."""
    values = drawn(6, 7, 31)
    assert passes.squares(ref(values)) == pytest.approx((values.astype(float) ** 2).sum())
    assert passes.squares(ref(values[:0])) == 0.0
