"""Work is cut so that everything is done once, on a grid that does not depend on the cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptool.dtypes import DTYPES
from adaptool.engine import tiles as cutting
from adaptool.engine.tiles import copy_jobs, fill_jobs, tile_height, tiles
from adaptool.model.plan import Row
from memory_source import MemorySource
from plan_rows import computed, placed, row

COUNTS = st.integers(0, 400)


@given(start=COUNTS, length=COUNTS, height=st.integers(1, 50))
def test_tiles_cover_a_range_once(start: int, length: int, height: int) -> None:
    """In order, without gaps, none higher than a tile and its lone last row."""
    found = list(tiles(start, start + length, height))
    assert [index for low, high in found for index in range(low, high)] == list(
        range(start, start + length)
    )
    assert all(0 < high - low <= height + 1 for low, high in found)


@given(length=st.integers(2, 400), height=st.integers(2, 50))
def test_no_tile_has_a_single_row(length: int, height: int) -> None:
    """A product of one row takes another path in the BLAS, so it never comes alone."""
    assert all(high - low > 1 for low, high in tiles(0, length, height))


@given(columns=st.integers(0, 10**6), elements=st.integers(1, 10**7))
def test_height_fills_a_tile_in_steps_of_16(columns: int, elements: int) -> None:
    """At least one row; a multiple of 16 from there on, the nearest to what the tile holds."""
    height = tile_height(columns, elements)
    assert height >= 1
    assert height <= 16 or height % 16 == 0
    assert height == 1 or abs(height - elements // max(1, columns)) <= 8


def with_job_size(elements: int) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr(cutting, "JOB_ELEMENTS", elements)
    return patch


SHAPES = st.tuples(st.integers(0, 300), st.integers(0, 40))


@given(shapes=st.lists(SHAPES, max_size=4), elements=st.integers(1, 900), job=st.integers(1, 5000))
def test_fill_jobs_keep_the_grid_of_the_whole_tensor(
    shapes: list[tuple[int, int]], elements: int, job: int
) -> None:
    """Tiles of all jobs together are the tensor's own tiles: float32 bytes depend on them."""
    rows = [computed(shape, name=str(place)) for place, shape in enumerate(shapes)]
    patch = with_job_size(job)
    try:
        jobs = list(fill_jobs(rows, elements))
    finally:
        patch.undo()
    for each in rows:
        count, columns = each.matrix
        height = tile_height(columns, elements)
        own = [one for one in jobs if one.row is each]
        found = [tile for one in own for tile in tiles(one.start, one.stop, height)]
        assert found == list(tiles(0, count, height))


def test_rows_that_are_copies_are_not_computed() -> None:
    """Only what an adapter or a dtype changes becomes a job."""
    copied = row(placed(MemorySource(bytes(16)), "F32", (4,)))
    converted = row(placed(MemorySource(bytes(16)), "F32", (4,)), dtype=DTYPES["BF16"])
    assert [job.row for job in fill_jobs([copied, converted, computed((2, 2))])] == [
        converted,
        computed((2, 2)),
    ]


def test_stacked_experts_are_cut_along_all_their_rows() -> None:
    """Two leading axes make the rows: (3, 10, 4) is a matrix of 30 rows."""
    (job,) = fill_jobs([computed((3, 10, 4), fold=2)])
    assert (job.start, job.stop) == (0, 30)


def test_scalar_is_one_row() -> None:
    """A tensor without axes is a matrix of one element."""
    (job,) = fill_jobs([computed(())])
    assert (job.start, job.stop) == (0, 1)


ROW = st.tuples(
    st.integers(0, 60),  # bytes
    st.booleans(),  # a gap before it in the source
    st.booleans(),  # a gap before it in the file
    st.sampled_from(["f", "g"]),
    st.booleans(),  # computed
)


@given(drawn=st.lists(ROW, max_size=12), most=st.integers(1, 100))
def test_copy_jobs_move_every_copied_byte_once(
    drawn: list[tuple[int, bool, bool, str, bool]], most: int
) -> None:
    """Whatever is adjacent, empty or computed: replaying the jobs gives each row its bytes."""
    content = bytes(place % 251 + 1 for place in range(2000))
    source = MemorySource(content)
    rows = layout(source, drawn)
    patch = pytest.MonkeyPatch()
    patch.setattr(cutting, "COPY_BYTES", most)
    try:
        jobs = list(copy_jobs(rows))
    finally:
        patch.undo()
    out = {"f": bytearray(2000), "g": bytearray(2000)}
    for job in jobs:
        assert 0 < job.length <= most
        target = out[job.file]
        assert not any(target[job.offset : job.offset + job.length])
        target[job.offset : job.offset + job.length] = content[
            job.source_offset : job.source_offset + job.length
        ]
        assert all(each in rows for each in job.rows)
    for each in rows:
        expected = content[each.source.offset : each.source.offset + each.length]
        there = bytes(out[each.file][each.offset : each.offset + each.length])
        assert there == (expected if each.is_copy else bytes(each.length))


def layout(source: MemorySource, drawn: list[tuple[int, bool, bool, str, bool]]) -> list[Row]:
    """Rows one after the other, in the source and in their files, with gaps here and there."""
    rows = []
    at, ends = 0, {"f": 0, "g": 0}
    for place, (length, gap, jump, file, calculated) in enumerate(drawn):
        at += 3 * gap
        ends[file] += 5 * jump
        ref = placed(source, "U8", (length,), name=str(place), offset=at)
        made = row(ref, file=file, offset=ends[file])
        if calculated:
            made = row(ref, file=file, offset=ends[file], blends=computed((1,)).blends)
        rows.append(made)
        at += length
        ends[file] += length
    return rows


def test_neighbours_are_copied_together() -> None:
    """A run of untouched tensors is one call into the kernel, not one a tensor."""
    source = MemorySource(bytes(100))
    rows = [
        row(placed(source, "U8", (10,), name=str(place), offset=10 * place), offset=10 * place)
        for place in range(10)
    ]
    (job,) = copy_jobs(rows)
    assert (job.source_offset, job.offset, job.length) == (0, 0, 100)
    assert job.rows == tuple(rows)
