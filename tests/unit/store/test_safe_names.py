"""Names that may become paths or reach a terminal."""

from __future__ import annotations

import pytest

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.store.safe_names import check_distinct, check_relative, printable


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "text_encoder/model-00001-of-00002.safetensors",
        "..hidden",
        "a..b",
        ".gitattributes",
        "größe/日本語\u3000.json",
        "with space.txt",
        "x" * 255,
    ],
)
def test_ordinary_name_passes(name: str) -> None:
    """Names that real repositories have are returned as they are."""
    assert check_relative(name, file="index.json", field="weight_map") == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("//server/share", "absolute"),
        ("C:\\x", "absolute"),
        ("C:x", "absolute"),
        ("c:/x", "absolute"),
        ("\\x", "absolute"),
        ("\\\\server\\share\\x", "absolute"),
        ("../x", "leaves"),
        ("a/../../x", "leaves"),
        ("..\\x", "leaves"),
        ("a/..", "leaves"),
        ("a\\b", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("\x1b[31m", "control"),
        ("a\u202eb", "control"),
        ("a\u2028b", "control"),
        ("a\ud800b", "control"),
        ("a//b", "empty component"),
        ("a/", "empty component"),
        ("./a", "empty component"),
        ("é" * 128, "255 bytes"),
        (".git/config", "reserved"),
        ("a/.GIT/config", "reserved"),
        (".cache/x", "reserved"),
    ],
)
def test_unsafe_name_is_refused_with_its_reason(name: str, says: str) -> None:
    """A name that could leave its directory somewhere, or deceive a reader, is refused."""
    with pytest.raises(InputError) as caught:
        check_relative(name, file="index.json", field="weight_map")
    assert caught.value.code is Code.PATH_UNSAFE
    assert (caught.value.file, caught.value.field) == ("index.json", "weight_map")
    assert says in caught.value.message
    assert caught.value.message.isprintable()


def test_names_that_differ_in_case_are_refused() -> None:
    """Two names that are one file on some systems are refused together; equal names are one."""
    check_distinct(["a", "b", "a"], file="f", field="weight_map")
    with pytest.raises(InputError, match="'A' and 'a'"):
        check_distinct(["a", "A"], file="f", field="weight_map")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\0", "a\\nb\\tc\\x00"),
        ("\u202eevil", "\\u202eevil"),
        ("\x9bC1", "\\x9bC1"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\udcff", "\\udcff"),
        ("[bold]x[/b]", "[bold]x[/bold]".replace("[/bold]", "[/b]")),
    ],
)
def test_printable_escapes_what_a_terminal_acts_on(text: str, shown: str) -> None:
    """Control, bidirectional, invisible and surrogate characters are shown as escapes."""
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_printable_cuts_long_text() -> None:
    """A megabyte of name is shown as a line."""
    assert printable("x" * 1_000_000, most=10) == "x" * 9 + "…"
    assert printable("x" * 10, most=10) == "x" * 10
