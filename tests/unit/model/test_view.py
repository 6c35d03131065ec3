"""Index maps, against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from adaptool.model.view import Span, View, whole


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """Spans whose blocks do not meet: a slice, heads with gaps, alternating rows."""
    length, step = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    blocks = draw(st.integers(1, 6))
    alternating = st.integers(0, step - 1)
    gap = draw(st.integers(0, 9))
    reach = (length - 1) * step + 1
    return Span(draw(alternating | st.integers(0, 30)), length, step, blocks, reach + gap)


@given(span=spans(), start=st.integers(0, 150), size=st.integers(0, 60))
def test_pieces_are_the_indices_inside_a_range(span: Span, start: int, size: int) -> None:
    """Each pair of slices means the same elements: of the axis, relative to start, and its own."""
    stop = start + size
    found = []
    for axis, own in span.pieces(start, stop):
        there = list(range(size)[axis])
        here = list(range(span.count)[own])
        assert len(there) == len(here) > 0
        found += list(zip((start + place for place in there), here, strict=True))
    indices = enumerate(span.indices())
    assert found == [(index, own) for own, index in indices if start <= index < stop]


@given(span=spans(), cuts=st.lists(st.integers(0, 200)))
def test_pieces_of_tiles_make_up_the_span(span: Span, cuts: list[int]) -> None:
    """However an axis is cut into tiles, every element of the span is met once."""
    edges = sorted({0, 300, *cuts})
    found = [
        place
        for start, stop in itertools.pairwise(edges)
        for _, own in span.pieces(start, stop)
        for place in range(span.count)[own]
    ]
    assert sorted(found) == list(range(span.count))


@given(span=spans())
def test_count_and_stop_follow_from_the_indices(span: Span) -> None:
    """As many as there are, and one past the last."""
    indices = list(span.indices())
    assert (span.count, span.stop) == (len(indices), max(indices) + 1)


@given(size=st.integers(1, 50), span=spans())
def test_whole_is_the_identity_and_nothing_else_is(size: int, span: Span) -> None:
    """An axis taken as it is needs no indexing."""
    assert list(whole(size).indices()) == list(range(size))
    assert whole(size).is_whole(size)
    if span.blocks == 1 and span.is_whole(size):
        assert list(span.indices()) == list(range(size))


def test_empty_span_has_no_pieces() -> None:
    """No length, or no blocks."""
    for span in (Span(3, 0), Span(3, 2, blocks=0)):
        assert list(span.pieces(0, 100)) == []
        assert (span.count, span.stop) == (0, 3)


def test_heads_and_alternating_rows() -> None:
    """GPT-NeoX keeps q of each head every three heads; gpt-oss has gate in the even rows."""
    assert list(Span(0, 2, blocks=3, stride=6).indices()) == [0, 1, 6, 7, 12, 13]
    assert list(Span(1, 4, step=2).indices()) == [1, 3, 5, 7]
    assert list(Span(1, 4, step=2).pieces(2, 6)) == [(slice(1, 4, 2), slice(1, 3))]


@given(one=spans(), other=spans())
def test_spans_overlap_where_they_share_an_index(one: Span, other: Span) -> None:
    """Interleaved heads may reach past each other without meeting."""
    shared = [index for index in one.indices() if index in list(other.indices())]
    assert one.overlaps(other) is other.overlaps(one) is bool(shared)


def test_views_overlap_where_rows_and_columns_do() -> None:
    """q's and k's rows do not; neither do two halves of the same rows."""
    q, k = View(Span(0, 4), whole(6)), View(Span(4, 2), whole(6))
    left, right = View(Span(0, 4), Span(0, 3)), View(Span(0, 4), Span(3, 3))
    assert not q.overlaps(k)
    assert not left.overlaps(right)
    assert q.overlaps(left)
