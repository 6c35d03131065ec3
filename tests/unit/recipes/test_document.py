"""What of YAML a recipe may hold; everything else is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.errors import InputError
from adaptool.recipes.document import LARGEST_RECIPE, Listed, Mapped, Scalar, parse_yaml, read_yaml

REFUSED = {
    "anchor": (b"a: &x 1\n", 1, "anchors"),
    "alias": (b"a: 1\nb: *x\n", 2, "anchors"),
    "bomb": (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", 1, "anchors"),
    "tag": (b"a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "tags"),
    "plain tag": (b"a: !!str 1\n", 1, "tags"),
    "twice": (b"a: 1\nb: 2\na: 3\n", 3, "'a' is defined twice"),
    "twice quoted": (b"a: 1\n'a': 3\n", 2, "'a' is defined twice"),
    "key": (b"? [a]\n: 1\n", 1, "a key must be a word"),
    "two": (b"a: 1\n---\nb: 1\n", 2, "second document"),
    "deep": (b"[" * 100, 1, "nested more than"),
    "deep blocks": (b"".join(b" " * n + b"a:\n" for n in range(40)), 17, "nested more than"),
    "syntax": (b"a: 1\nb: [1, 2\n", 3, "expected"),
    "tab": (b"a:\n\t- b\n", 2, "cannot start any token"),
    "not utf-8": (b"a: 1\nb: \xff\n", 2, "0xff is not UTF-8"),
    "control": (b"a: \x01\n", 1, "special characters"),
    "surrogate": (b'a: "\\ud800"\n', 1, "surrogate"),
    "no character": (b'a: "\\Uffffffff"\n', 1, "not valid YAML"),
    "long version": (b"%YAML " + b"9" * 5000 + b".1\n--- a\n", 1, "not valid YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_yaml_names_the_line(case: str) -> None:
    """One line that says what is wrong, and where."""
    raw, line, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as caught:
        parse_yaml(raw, "x.yaml")
    assert caught.value.file == f"x.yaml:{line}"


def test_values_stay_the_text_they_are() -> None:
    """No number, date or truth is made of what only looks like one in YAML 1.1."""
    tree = parse_yaml(b"a: [no, 1e3, 012, 2026-11-21, 'x', ~, 1:30]\n", "x.yaml")
    assert isinstance(tree, Mapped)
    listed = tree.items["a"]
    assert isinstance(listed, Listed)
    texts = [each.text for each in listed.items if isinstance(each, Scalar)]
    assert texts == ["no", "1e3", "012", "2026-11-21", "x", "~", "1:30"]
    assert [each.empty for each in listed.items if isinstance(each, Scalar)] == [
        *[False] * 5,
        True,
        False,
    ]


def test_lines_are_those_of_the_file() -> None:
    """Blocks, flows and multi-line texts begin where they stand."""
    tree = parse_yaml(b"# one\na: 1\nb:\n  - x\n  - |\n    long\n    text\nc: {d: 2}\n", "x.yaml")
    assert isinstance(tree, Mapped)
    b = tree.items["b"]
    assert isinstance(b, Listed)
    assert [each.line for each in (tree.items["a"], *b.items, tree.items["c"])] == [2, 4, 5, 8]


def test_empty_file_is_an_empty_text() -> None:
    """Whoever reads the tree says what is missing."""
    for raw in (b"", b"# nothing\n"):
        assert parse_yaml(raw, "x.yaml") == Scalar("", plain=True, line=1)


def test_large_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """A recipe has no megabytes."""
    file = tmp_path / "x.yaml"
    file.write_bytes(b"#" * (LARGEST_RECIPE + 1))
    with pytest.raises(InputError, match="the recipe has 1048577 bytes"):
        read_yaml(file)
