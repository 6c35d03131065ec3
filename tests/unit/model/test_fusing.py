"""Pairs of fused modules: parts that are split off and fused again have the same deltas."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adaptool.dtypes import DTYPES
from adaptool.model.derived import array
from adaptool.model.fusing import Pair, fused, split
from adaptool.model.numbers import as_float64
from adaptool.names.diffusion import Rows
from adaptool.store.tensors import TensorRef
from exact_numbers import exact_normal
from memory_source import MemorySource

Array = np.ndarray[Any, Any]
INNER = 5


def _ref(values: Array, dtype: str = "F32") -> TensorRef:
    raw = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    return TensorRef("t", DTYPES[dtype], values.shape, 0, len(raw), MemorySource(raw))


def _values(ref: TensorRef) -> Array:
    return as_float64(array(ref), ref.dtype)


def _delta(pair: Pair) -> Array:
    b, a = _values(pair.b), _values(pair.a)
    product: Array = pair.scaling * (b.reshape(len(b), -1) @ a.reshape(len(a), -1))
    return product


def _pair(out: int, rank: int, seed: int, scaling: float = 0.5, dtype: str = "F32") -> Pair:
    rng = np.random.default_rng(seed)
    a, b = exact_normal(rng, rank, INNER), exact_normal(rng, out, rank)
    return Pair(_ref(a, dtype), _ref(b, dtype), scaling)


def _in_order(sizes: list[int]) -> list[Rows]:
    return [((start, stop),) for start, stop in pairwise([0, *accumulate(sizes)])]


SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=4)


@given(SIZES, st.integers(1, 4))
def test_dense_pair_comes_back_with_the_same_factors(sizes: list[int], rank: int) -> None:
    """A is common to the parts, so fusing finds the pair that was split."""
    pair, rows = _pair(sum(sizes), rank, 1), _in_order(sizes)
    parts = split(pair, rows)
    deltas = [_delta(part) for part in parts if part is not None]
    assert np.array_equal(np.concatenate(deltas), _delta(pair))
    back = fused(parts, rows)
    assert array(back.a).tobytes() == array(pair.a).tobytes()
    assert array(back.b).tobytes() == array(pair.b).tobytes()


@given(SIZES, st.data())
def test_parts_of_their_own_come_back_with_their_ranks(sizes: list[int], data: Any) -> None:
    """Some may be missing, and ranks may differ; the fused B is block-diagonal."""
    ranks = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    parts = [
        _pair(size, rank, seed) if rank else None
        for seed, (size, rank) in enumerate(zip(sizes, ranks, strict=True))
    ]
    if not any(ranks):
        return
    rows = _in_order(sizes)
    whole = fused(parts, rows)
    assert whole.rank == sum(ranks)
    expected = np.concatenate(
        [
            np.zeros((size, INNER)) if part is None else _delta(part)
            for size, part in zip(sizes, parts, strict=True)
        ]
    )
    assert np.array_equal(_delta(whole), expected)
    again = split(whole, rows)
    for part, found in zip(parts, again, strict=True):
        if part is None:
            assert found is None or not _delta(found).any()
        else:
            assert found is not None
            assert np.array_equal(_delta(found), _delta(part))
            if sum(map(bool, ranks)) > 1:
                assert found.rank == part.rank


@given(st.integers(1, 5))
def test_halves_that_change_places_do_so_back(half: int) -> None:
    """diffusers has scale before shift where the checkpoint has it after."""
    pair = _pair(2 * half, 2, 3)
    rows: list[Rows] = [((half, 2 * half), (0, half))]
    (part,) = split(pair, rows)
    assert part is not None
    assert np.array_equal(_delta(part), np.roll(_delta(pair), half, axis=0))
    assert array(fused([part], rows).b).tobytes() == array(pair.b).tobytes()


def test_parts_of_other_scales_take_the_first_ones() -> None:
    """The ratio goes into B, in float64."""
    parts = [_pair(2, 2, 1, 0.5), _pair(3, 2, 2, 0.3, "F16")]
    whole = fused(parts, _in_order([2, 3]))
    assert whole.scaling == 0.5
    expected = np.concatenate([_delta(part) for part in parts])
    assert np.allclose(_delta(whole), expected, rtol=1e-15)


def test_pair_without_effect_stays_whole() -> None:
    """A fresh adapter has B = 0 everywhere: nothing says that it is block-diagonal."""
    pair = Pair(_ref(np.ones((6, INNER))), _ref(np.zeros((6, 6))), 1.0)
    parts = split(pair, _in_order([2, 2, 2]))
    assert [part and part.rank for part in parts] == [6, 6, 6]


def test_magnitudes_go_with_the_outputs() -> None:
    """One number for each row of B."""
    pair = Pair(
        *(_ref(np.ones(shape)) for shape in ((2, INNER), (4, 2))), 1.0, _ref(np.arange(4.0))
    )
    parts = split(pair, _in_order([1, 3]))
    found = [part.magnitude for part in parts if part is not None]
    assert [list(_values(each)) for each in found if each is not None] == [[0], [1, 2, 3]]
    back = fused(parts, _in_order([1, 3])).magnitude
    assert back is not None
    assert list(_values(back)) == [0, 1, 2, 3]


def test_convolution_factors_keep_their_axes() -> None:
    """B of a convolution has axes of 1 after its columns."""
    parts = [
        Pair(_ref(np.full((1, INNER, 3, 3), seed)), _ref(np.full((2, 1, 1, 1), seed)), 1.0)
        for seed in (1.0, 2.0)
    ]
    whole = fused(parts, _in_order([2, 2]))
    assert (whole.a.shape, whole.b.shape) == ((2, INNER, 3, 3), (4, 2, 1, 1))
    assert np.array_equal(_delta(whole), np.concatenate([_delta(part) for part in parts]))
