"""What may be said of a request that failed."""

from __future__ import annotations

import pytest

from adaptool.errors import without_secrets
from adaptool.remote.failures import LONGEST_TOLD, redacted

TOKEN = "hf_" + "a1B2c3D4e5F6g7H8i9J0"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"bad token {TOKEN}.", "bad token ***."),
        ("Authorization: Bearer abc.def-ghi", "Authorization: ***"),
        ("GET https://cdn/x?X-Amz-Signature=abc&Expires=1 failed", "GET https://cdn/x?*** failed"),
        ("https://me:word@hub.example/api", "https://***@hub.example/api"),
        ("nothing secret: hf_hub, a@b, what? no", "nothing secret: hf_hub, a@b, what? no"),
    ],
)
def test_secrets_are_blanked_and_nothing_else(said: str, shown: str) -> None:
    """Tokens, credentials and signatures, wherever they stand."""
    assert without_secrets(said) == shown
    assert redacted(said) == shown


def test_token_of_another_hub_is_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not look like a token; a value too short to be one is left alone."""
    monkeypatch.setenv("HF_TOKEN", "correct horse battery")
    assert without_secrets("x correct horse battery y") == "x *** y"
    monkeypatch.setenv("HF_TOKEN", "x")
    assert without_secrets("x y") == "x y"


def test_foreign_text_is_one_short_line_without_escapes() -> None:
    """A server's message may hold anything."""
    said = redacted("a\nb\x1b[31m" + "c" * 1000)
    assert said.startswith("a b\\x1b[31mccc")
    assert len(said) <= LONGEST_TOLD
