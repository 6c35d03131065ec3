"""hf:// addresses are taken apart as the Hub writes them; anything else is exit 2."""

from __future__ import annotations

import pytest

from adaptool.errors import UsageError
from adaptool.remote.uri import HubUri

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://me/adapter", HubUri("me/adapter")),
        ("hf://me/adapter/", HubUri("me/adapter")),
        ("hf://models/me/adapter", HubUri("me/adapter")),
        ("hf://me/adapter@v1.0", HubUri("me/adapter", "v1.0")),
        ("hf://me/adapter@refs/pr/12", HubUri("me/adapter", "refs/pr/12")),
        (f"hf://me/adapter@{COMMIT}/a/b", HubUri("me/adapter", COMMIT, "a/b")),
        ("hf://me/adapter@feature%2Fx/a", HubUri("me/adapter", "feature/x", "a")),
        ("hf://me/adapter/checkpoint-5", HubUri("me/adapter", None, "checkpoint-5")),
    ],
)
def test_address_is_taken_apart(text: str, expected: HubUri) -> None:
    """Repository, revision, folder."""
    assert HubUri.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "me/adapter",
        "hf://me",
        "hf://",
        "hf:///adapter",
        "hf://me/../adapter",
        "hf://datasets/me/adapter",
        "hf://me/adapter@",
        "hf://me/adapter@a b",
        "hf://me/adapter@a%20b",
        "hf://me/adapter@..",
        "hf://me/adapter@a%2F..%2Fb",
        "hf://me/adapter@a%00",
        "hf://me/adapter/../other",
        "hf://me/adapter/a\\b",
        "hf://me/a--b",
        "hf://-me/adapter",
        "https://huggingface.co/me/adapter",
    ],
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    """Exit 2, with the form that is meant."""
    with pytest.raises(UsageError):
        HubUri.parse(text)


@pytest.mark.parametrize(
    ("revision", "pinned"),
    [(COMMIT, True), (COMMIT[:12], False), ("main", False), (COMMIT.upper(), False)],
)
def test_only_a_whole_commit_is_pinned(revision: str, *, pinned: bool) -> None:
    """A shortened hash could name a branch."""
    assert HubUri("me/adapter", revision).pinned is pinned


def test_address_is_written_as_it_was_read() -> None:
    """Errors and receipts name the place as the user did."""
    branches = ("main/a/b", "feature%2Fx/a", "refs/pr/12/a", "a%252Fb")
    for text in ("hf://me/adapter", *(f"hf://me/adapter@{branch}" for branch in branches)):
        assert str(HubUri.parse(text)) == text
