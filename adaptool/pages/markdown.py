"""Foreign text and tables in GitHub-flavoured Markdown.

Names of tensors and files come from strangers: whatever means something in Markdown is written as
an entity, which the format never takes for structure (CommonMark 0.31, section 2.5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from adaptool.store.safe_names import printable

LONGEST = 300
# `_` inside a word and `:` alone mean nothing; `$` begins a formula on GitHub, `://` a link.
_MEANS_SOMETHING = re.compile(r"[&<>|\\`*\[\]~$@]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|:(?=//|:|\+)")


def escaped(text: str) -> str:
    """`text` on one line, as it is: no markup, no control characters, 300 characters at most."""
    cut = printable(text, most=LONGEST)
    return _MEANS_SOMETHING.sub(lambda found: f"&#{ord(found.group())};", cut)


def code(text: str) -> str:
    """A name or a path, in the type of code."""
    return f"<code>{escaped(text)}</code>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table; heads and cells are Markdown already."""
    yield _row(heads)
    yield _row(["---"] * len(heads))
    for row in rows:
        yield _row(row)


def folded(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines that show when their title is clicked; `title` is Markdown already."""
    # The blank lines make GitHub read what stands between the tags as Markdown.
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from lines
    yield ""
    yield "</details>"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
