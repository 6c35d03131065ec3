"""Text and numbers as people see them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptool.cli import text


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(found: str) -> None:
    """Whatever a file calls its tensors, a terminal sees printable characters only."""
    assert text.printable(found).isprintable()


@given(st.text(max_size=200).filter(str.isprintable))
def test_printable_text_is_left_alone(found: str) -> None:
    """Names in any script are shown as they are."""
    assert text.printable(found) == found


def test_lone_surrogate_is_escaped() -> None:
    """A file name that is no UTF-8 can be told."""
    assert text.printable("a\udcff") == "a\\udcff"


def test_long_text_is_cut_in_the_middle() -> None:
    """A name of a megabyte does not fill the screen; both of its ends are seen."""
    shown = text.printable("a" * 10**6 + "end")
    assert len(shown) < 700
    assert shown.endswith("end")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (3_087_428_608, "3.1 GB"),
        (10**18, "1.0 EB"),
    ],
)
def test_byte_count_has_a_decimal_unit(count: int, shown: str) -> None:
    """The units of the Hub: 1 kB is 1000 B."""
    assert text.byte_count(count) == shown


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(0.0, "0 %"), (0.612, "61.2 %"), (0.98711, "98.7 %"), (0.99999, "99.9 %"), (1.0, "100 %")],
)
def test_percent_is_100_only_for_all_of_it(fraction: float, shown: str) -> None:
    """Nearly all is not rounded up to all."""
    assert text.percent(fraction) == shown


def test_json_has_no_number_that_json_lacks() -> None:
    """NaN and Infinity are no JSON: they become null, at any depth."""
    body = {"norms": [1.5, float("nan")], "more": {"high": float("inf"), "text": "\udcff"}}
    found = json.loads(text.json_text(body))
    assert found["schema"] == 1
    assert found["norms"] == [1.5, None]
    assert found["more"]["high"] is None
    assert text.json_text(body).isascii()
