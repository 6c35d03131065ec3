"""How far apart two checkpoints are, in steps of their dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptool.api.merging import BYTES
from adaptool.engine import compare
from adaptool.engine import tiles as cutting
from adaptool.engine.compare import ComparingOutlet
from adaptool.engine.tiles import copy_jobs
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.plan import Piece, Row
from adaptool.model.results import Difference
from adaptool.model.view import View, whole
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource
from plan_rows import placed, ref, row

FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64"}


def filled(
    dtype: str, ours: bytes, theirs: bytes, count: int, *, tolerance: int = 1
) -> list[Difference]:
    """Compare a computed tensor with a stored one, in two tiles."""
    name = row(ref(ours, dtype, (count,)))
    outlet = ComparingOutlet({"x": ref(theirs, dtype, (count,), offset=3)}, tolerance=tolerance)
    middle = count // 2 * (len(ours) // count)
    for start, stop in ((0, middle), (middle, len(ours))):
        outlet.fill(name, start, memoryview(ours)[start:stop])
    return outlet.differences({"x": name})


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("start", [1.0, -3.5, 0.0, 1e-7, -6e-8, 60000.0, 1e-320])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_distance_is_the_number_of_nextafters(dtype: str, start: float, count: int) -> None:
    """Counted with numpy, across zero and powers of two, up and down."""
    first = np.array([start], FLOATS[dtype])
    up, down = first.copy(), first.copy()
    for _ in range(count):
        up = np.nextafter(up, np.array(np.inf, first.dtype))
        down = np.nextafter(down, np.array(-np.inf, first.dtype))
    for other in (up, down):
        (found,) = filled(dtype, first.tobytes(), other.tobytes(), 1, tolerance=0)
        assert found.max_ulp == count
        assert filled(dtype, other.tobytes(), first.tobytes(), 1, tolerance=count) == []
        assert filled(dtype, first.tobytes(), other.tobytes(), 1, tolerance=count - 1)


def test_bfloat16_steps_are_its_own() -> None:
    """0x3F80 is 1, 0x3F82 two steps above; -1 is as far below zero as 1 above it."""
    ours = np.array([0x3F80, 0x0001, 0x3F80], "uint16").tobytes()
    theirs = np.array([0x3F82, 0x8001, 0xBF80], "uint16").tobytes()
    (found,) = filled("BF16", ours, theirs, 3)
    assert found.max_ulp == 2 * 0x3F80
    assert found.fraction == 1.0
    assert found.reason == "3 of 3 elements differ"


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_of_both_signs_are_the_same_number(dtype: str) -> None:
    """They differ by no step; only a comparison of bytes tells them apart."""
    plus, minus = (np.array([zero, 1.0], FLOATS[dtype]).tobytes() for zero in (0.0, -0.0))
    assert filled(dtype, plus, minus, 2, tolerance=0) == []
    (found,) = filled(dtype, plus, minus, 2, tolerance=BYTES)
    assert (found.max_ulp, found.fraction) == (0, 0.5)
    assert filled(dtype, minus, minus, 2, tolerance=BYTES) == []


@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    pair=st.tuples(st.integers(), st.integers()),
    tolerance=st.integers(0, 3),
)
def test_any_two_patterns(dtype: str, pair: tuple[int, int], tolerance: int) -> None:
    """Against integers without a limit: sign and magnitude made into one scale."""
    size = np.dtype(FLOATS[dtype]).itemsize
    patterns = [value % (1 << 8 * size) for value in pair]
    sign = 1 << (8 * size - 1)
    scale = [-(value - sign) if value >= sign else value for value in patterns]
    distance = abs(scale[0] - scale[1])
    ours, theirs = (value.to_bytes(size, "little") for value in patterns)
    found = filled(dtype, ours, theirs, 1, tolerance=tolerance)
    assert [each.max_ulp for each in found] == ([distance] if distance > tolerance else [])


@pytest.mark.parametrize(("dtype", "kind"), [("I64", "int64"), ("U8", "uint8"), ("BOOL", "uint8")])
def test_whole_numbers_differ_by_their_difference(dtype: str, kind: str) -> None:
    """An index that is one off is off: here a step is no rounding, but it is counted as one."""
    ours, theirs = np.array([0, 5, 1], kind), np.array([1, 5, 0], kind)
    (found,) = filled(dtype, ours.tobytes(), theirs.tobytes(), 3, tolerance=0)
    assert (found.max_ulp, found.fraction) == (1, pytest.approx(2 / 3))


def copied(rows: list[Row], merged: Mapping[str, TensorRef]) -> list[Difference]:
    """Compare copied tensors through the jobs that would copy them."""
    outlet = ComparingOutlet(merged, tolerance=BYTES)
    for job in copy_jobs(rows):
        outlet.copy(job)
    return outlet.differences({each.name: each for each in rows})


@given(
    lengths=st.lists(st.tuples(st.sampled_from(["U8", "F32", "F64"]), st.integers(0, 9))),
    flips=st.sets(st.integers(0, 600)),
    cut=st.integers(1, 50),
    block=st.sampled_from([8, 16, 64]),
)
def test_jobs_cut_through_elements_count_each_once(
    lengths: list[tuple[str, int]], flips: set[int], cut: int, block: int
) -> None:
    """Copies are cut by bytes, tensors of odd lengths lie between: elements are counted whole."""
    rows, merged, end = [], {}, 0
    sizes = {"U8": 1, "F32": 4, "F64": 8}
    total = sum(sizes[dtype] * count for dtype, count in lengths)
    content = bytes(place % 7 for place in range(total))
    other = bytes(byte ^ (place in flips) for place, byte in enumerate(content))
    base, theirs = MemorySource(content), MemorySource(other)
    for place, (dtype, count) in enumerate(lengths):
        name = str(place)
        rows.append(row(placed(base, dtype, (count,), name=name, offset=end), offset=end))
        merged[name] = placed(theirs, dtype, (count,), name=name, offset=end)
        end += sizes[dtype] * count
    patch = pytest.MonkeyPatch()
    patch.setattr(cutting, "COPY_BYTES", cut)
    patch.setattr(compare, "BLOCK", block)
    try:
        found = {each.tensor: each.reason for each in copied(rows, merged)}
    finally:
        patch.undo()
    assert found == expected(rows, content, other)


def expected(rows: list[Row], content: bytes, other: bytes) -> dict[str, Any]:
    wrong = {}
    for each in rows:
        size = each.dtype.bits // 8
        starts = range(each.offset, each.offset + each.length, size)
        count = sum(content[at : at + size] != other[at : at + size] for at in starts)
        if count:
            wrong[each.name] = f"{count} of {each.source.elements} elements differ"
    return wrong


def test_tensor_that_the_merge_lacks_is_left_out() -> None:
    """Its absence is told by name elsewhere; here there is nothing to compare."""
    ours = row(ref(bytes(4), "F32", (1,)))
    outlet = ComparingOutlet({}, tolerance=1)
    outlet.fill(ours, 0, memoryview(bytes(4)))
    for job in copy_jobs([ours]):
        outlet.copy(job)
    assert outlet.differences({"x": ours}) == []


def _touched(base: bytes, dtype: str, count: int) -> Row:
    """A row that a delta changes; what the delta is does not matter to a comparison."""
    terms = Terms(Form.VECTOR, count, 1, 1.0)
    delta = Delta("x", "x", "shift", {}, terms)
    piece = Piece(0, delta, View(whole(count), whole(1)), 1.0)
    return replace(row(ref(base, dtype, (count,))), pieces=(piece,))


@pytest.mark.parametrize("exact", [False, True])
def test_step_of_a_cancelled_element_is_the_base_s(exact: bool) -> None:
    """W is 1 and the delta -1 + tiny: float32 cannot know the small steps of what is left."""
    base = np.array([1.0, 1.0, 1.0], "float16")
    ours = np.array([1e-4, 1e-4, 1e-4], "float16")
    theirs = np.array([1.05e-4, 1e-4 + 9e-4, 1e-4 + 2e-3], "float16")
    touched = _touched(base.tobytes(), "F16", 3)
    stored = ref(theirs.tobytes(), "F16", (3,))
    outlet = ComparingOutlet({"x": stored}, tolerance=BYTES if exact else 1)
    outlet.fill(touched, 0, memoryview(ours.tobytes()))
    (found,) = outlet.differences({"x": touched})
    # A step at 1 is 2**-10, about 0.00098: only the last element is further away.
    assert found.fraction == pytest.approx(1.0 if exact else 1 / 3)
