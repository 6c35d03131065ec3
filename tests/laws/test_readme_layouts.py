"""The README's table of layouts is the one in their files.

    python tests/laws/test_readme_layouts.py

prints it anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.layouts import layouts, writable

README = (Path(__file__).parents[2] / "README.md").read_text()


def row(name: str) -> str:
    """A layout's line: its name for --to, how it is recognised, whether it is written, what of."""
    layout = layouts()[name]
    title = f"{layout.TITLE} (`{name}`)"
    verbs = "read, write" if name in writable() else "read"
    return f"| {' | '.join([title, layout.DETECT, verbs, layout.LOSSY or '-'])} |"


@pytest.mark.parametrize("name", layouts())
def test_every_layout_stands_in_the_table(name: str) -> None:
    """Word for word; a new file is a new line there."""
    assert row(name) in README


def test_no_layout_stands_there_that_is_not_read() -> None:
    """As many lines as files."""
    table = README.split("| layout | recognised by |", 1)[1].split("\n\n", 1)[0]
    assert len(table.splitlines()) == len(layouts()) + 2


if __name__ == "__main__":
    print("| layout | recognised by | | what is not held in writing |")  # noqa: T201
    print("|---|---|---|---|")  # noqa: T201
    for each in layouts():
        print(row(each))  # noqa: T201
