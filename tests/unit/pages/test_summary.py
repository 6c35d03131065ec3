"""The Markdown for the page of a CI job: complete, and nobody else's markup."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from adaptool.pages.markdown import escaped
from adaptool.pages.summary import MOST_ROWS, run_summary, summary

GITHUB = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
TAGS = re.compile(r"</?(?:h\d|p|table|thead|tbody|tr|th|td|code|br|details|summary)>")
HOSTILE = (
    "<script>alert(1)</script>",
    "</code><img src=x onerror=alert(1)>",
    "a | b | c",
    "a \\| b",
    "`x` ``y``",
    "**bold** _it_ ~~no~~ *x*",
    "[link](https://evil.example) ![x](y) https://evil.example",
    "<https://evil.example>",
    "&lt;b&gt;",
    "line\nnext | cell\r\n# heading",
    "\u202emirrored",
    "::error file=x::y",
    "$x$ @somebody",
    "__init__.py",
    "model.layers.0.self_attn.q_proj.weight",
)
ERROR = {
    "code": "not-found",
    "exit": 2,
    "file": "x",
    "tensor": None,
    "field": None,
    "message": "no such file",
    "hint": "look again",
}


def _text(markdown: str) -> str:
    """What a reader sees, one table cell after the other."""
    html = GITHUB.render(markdown)
    assert re.sub(TAGS, "", html).find("<") == -1, html
    return re.sub(r"\s+", " ", TAGS.sub(" ", html))


@pytest.mark.parametrize("name", HOSTILE)
def test_foreign_names_are_read_as_they_are(name: str) -> None:
    """In a title, a path, a finding and a row: no markup, no link, no further cell."""
    finding = {"code": "x", "severity": "note", "message": name, "file": name, "hint": name}
    body = {
        "out": name,
        "findings": [finding],
        "modules": [{"module": name, "rank": 1}],
        "targets": {name: 2},
    }
    markdown = summary(name, body)
    html = GITHUB.render(markdown)
    shown = escaped(name)
    assert html.count("<a ") == html.count("<img") == html.count("<em>") == 0
    assert html.count("<h1>") == 0
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) <= 3
    assert _text(markdown).count(_text(shown).strip()) == 7


def test_title_comes_first_and_a_blank_line_last() -> None:
    """Sections can be put one after the other."""
    text = summary("adaptool merge", {"bytes": 5}) + summary("next", {})
    assert text.startswith("### adaptool merge\n\n|  |  |\n")
    assert text.endswith("\n\n### next\n\n")


def test_numbers_have_their_units() -> None:
    """Bytes in decimal units, spans as such, what is unknown left out."""
    body = {
        "bytes": 2_500_000,
        "relative_error": 0.123456,
        "rank": {"min": 4, "max": 8, "histogram": {"4": 1}},
        "ok": False,
        "bound": None,
        "dry_run": False,
        "tensors": {"total": 1200, "touched": 3},
    }
    text = summary("x", body)
    assert "| bytes | 2.5 MB |" in text
    assert "| relative error | 0.1235 |" in text
    assert "| rank | 4 to 8 |" in text
    assert "| ok | no |" in text
    assert "| tensors | total 1,200, touched 3 |" in text
    assert "bound" not in text
    assert "dry run" not in text


def test_long_lists_are_cut_and_folded() -> None:
    """A job's page holds a megabyte."""
    rows = [{"module": f"m{number}", "rank": number} for number in range(MOST_ROWS + 7)]
    text = summary("x", {"modules": rows, "carried": [f"c{number}" for number in range(12)]})
    assert f"<details><summary>{MOST_ROWS + 7} modules</summary>\n\n| module | rank |" in text
    assert "and 7 more" in text
    assert f"m{MOST_ROWS}<" not in text
    assert "and 2 more |" in text


def test_error_stands_with_its_exit_code_and_hint() -> None:
    """An error has no result, but a row of its own."""
    text = summary("x", {"error": ERROR, "errors": [ERROR, {**ERROR, "code": "other"}]})
    row = "| 2 | <code>not-found</code> | <code>x</code> | no such file <br>look again |"
    assert row in text
    assert "<code>other</code>" in text


def test_run_has_a_row_for_each_step_and_a_section_where_there_is_more_to_say() -> None:
    """Findings and the error under the table, not within it."""
    finding = {"code": "rank", "severity": "warning", "message": "high", "file": None}
    steps = [
        {"name": "a", "verb": "merge", "status": "skipped", "result": {"out": "m", "bytes": 5}},
        {"name": "b", "verb": "validate", "status": "done", "result": {"findings": [finding]}},
        {"name": "c", "verb": "push", "status": "failed", "result": None, "error": ERROR},
        {"name": "d", "verb": "pull", "status": "not-run", "result": None},
    ]
    text = run_summary({"recipe": "r.yaml", "ok": False, "steps": steps})
    assert "| <code>a</code> | merge | skipped | out <code>m</code>; bytes 5 bytes |" in text
    assert "| <code>d</code> | pull | not-run |  |" in text
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == [
        "### adaptool run <code>r.yaml</code>",
        "#### b (validate)",
        "#### c (push)",
    ]
