"""Digests of what lies at a path, and the state that remembers them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from adaptool.recipes import contents
from adaptool.recipes.contents import ABSENT, Contents
from adaptool.recipes.state import MOST_REMEMBERED, Done, State, read_state

DONE = Done("slim", "resize", "1", {"rank": 2}, {"a": "x"}, {"out": "y"}, {"bytes": 5})


def _digest(path: Path) -> str:
    return Contents().of(str(path))


def test_file_counts_by_its_sha256(tmp_path: Path) -> None:
    """As sha256sum says it."""
    file = tmp_path / "x"
    file.write_bytes(b"content")
    assert _digest(file) == "sha256:" + hashlib.sha256(b"content").hexdigest()
    assert _digest(tmp_path / "no") == ABSENT


def test_large_file_counts_by_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header, size and samples: what is written elsewhere is another file."""
    monkeypatch.setattr(contents, "MOST_READ_WHOLE", 1000)
    file = tmp_path / "x"
    file.write_bytes(bytes(5000))
    first = _digest(file)
    assert first.startswith("fingerprint:")
    file.write_bytes(bytes(4999) + b"1")
    assert _digest(file) != first


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a").write_bytes(b"2"),
        lambda root: (root / "a").rename(root / "c"),
        lambda root: (root / "deep" / "b").unlink(),
        lambda root: (root / "new").touch(),
    ],
    ids=["content", "name", "gone", "new"],
)
def test_directory_counts_with_all_names_and_bytes(change: object, tmp_path: Path) -> None:
    """Whatever a verb may read of it."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "deep" / "b").write_bytes(b"1")
    before = _digest(tmp_path)
    assert callable(change)
    change(tmp_path)
    assert _digest(tmp_path) != before


def test_times_caches_and_links_do_not_count(tmp_path: Path) -> None:
    """A link to a file is that file, as in the Hub's cache."""
    real, linked = tmp_path / "real", tmp_path / "linked"
    real.mkdir()
    linked.mkdir()
    (real / "a").write_bytes(b"1")
    (linked / "a").symlink_to(real / "a")
    (linked / ".cache").mkdir()
    (linked / ".cache" / "x").touch()
    assert _digest(real) == _digest(linked)
    before = _digest(real)
    os.utime(real / "a", (1, 1))
    assert _digest(real) == before


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Whole, and with numbers that are not finite."""
    state = State().having(replace(DONE, result={"error": float("inf"), "bytes": 5}))
    (tmp_path / "s.json").write_bytes(state.encoded())
    assert read_state(tmp_path / "s.json") == state
    assert read_state(tmp_path / "no.json") == State()


def test_latest_writer_of_a_place_is_remembered() -> None:
    """Another step's entry for the same output goes; the same work stands once."""
    other = replace(DONE, options={"rank": 3}, outputs={"out": "z"})
    state = State().having(DONE).having(other)
    assert state.done == (other,)
    assert state.made("out") == "z"
    assert state.having(other).done == (other,)
    assert state.find(DONE) is None


def test_state_does_not_grow_for_ever() -> None:
    """The oldest are forgotten."""
    state = State()
    for number in range(MOST_REMEMBERED + 3):
        state = state.having(replace(DONE, options={"rank": number}, outputs={f"{number}": "x"}))
    assert len(state.done) == MOST_REMEMBERED
    assert state.done[0].options == {"rank": 3}
