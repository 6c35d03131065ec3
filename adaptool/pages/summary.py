"""What a command did, as Markdown for the summary of a CI job: from the object of its `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from adaptool.pages.markdown import code, escaped, folded, table
from adaptool.store.disk import amount

MOST_ROWS = 50
MOST_NAMES = 10

Body = Mapping[str, Any]
_ELSEWHERE = frozenset({"schema", "findings", "error", "errors", "plan", "similarity", "steps"})
# Names and paths, which are set in the type of code.
_NAMES = frozenset({"out", "path", "tensor", "module", "name", "file", "repo", "commit", "recipe"})


def summary(title: str, body: Body, *, level: int = 3) -> str:
    """The section of one command; `body` is its JSON answer, or `{"error": ..., "errors": ...}`.

    `title` is plain text, `level` that of the heading. Ends with a blank line, so that sections
    can be appended to one file. The same body gives the same text.
    """
    return _joined(_section(title, body, level))


def run_summary(body: Body, *, level: int = 3) -> str:
    """The sections of a recipe: a table of its steps, then each step that has something to say.

    `body` is the JSON answer of `run`.
    """
    return _joined(_run(body, level))


def key_numbers(body: Body) -> str:
    """One line of Markdown with what a result says in single values."""
    return "; ".join(f"{name} {value}" for name, value in _facts(body))


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n\n"


def _section(title: str, body: Body, level: int) -> Iterator[str]:
    yield f"{'#' * level} {escaped(title)}"
    errors = body.get("errors") or ([body["error"]] if body.get("error") else [])
    if errors:
        yield ""
        yield from _errors(errors)
    facts = list(_facts(body))
    if facts:
        yield ""
        yield from table(["", ""], facts)
    yield from _lists(body)
    findings = body.get("findings")
    if findings:
        yield ""
        yield from _findings(findings)


def _run(body: Body, level: int) -> Iterator[str]:
    yield f"{'#' * level} adaptool run {code(str(body.get('recipe', '')))}"
    yield ""
    steps: Sequence[Body] = body.get("steps") or []
    yield from table(["step", "verb", "status", "result"], map(_step, steps))
    for step in steps:
        result = _told(step)
        if result.get("findings") or result.get("errors") or result.get("error"):
            yield ""
            yield from _section(f"{step['name']} ({step['verb']})", result, level + 1)


def _told(step: Body) -> Body:
    """A step's result, or its error as a command would have told it."""
    return {**(step.get("result") or {}), **{key: step[key] for key in _ERRORS if step.get(key)}}


_ERRORS = ("error", "errors")


def _step(step: Body) -> Sequence[str]:
    return (
        code(str(step["name"])),
        escaped(str(step["verb"])),
        escaped(str(step["status"])),
        key_numbers(step.get("result") or {}),
    )


def _facts(body: Body) -> Iterator[tuple[str, str]]:
    """Name and value of everything that fits a line; what is unknown is left out."""
    for name, value in body.items():
        if name in _ELSEWHERE or (name == "dry_run" and not value):
            continue
        shown = _shown(name, value)
        if shown:
            yield escaped(name.replace("_", " ")), shown


def _shown(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, list | tuple):
        return _names(value)
    return _single(name, value)


def _pairs(value: Body) -> str:
    if {"min", "max"} <= set(value):
        low, high = (_single("", value[end]) for end in ("min", "max"))
        return low if low == high else f"{low} to {high}"
    inner = ((key, _single(key, each)) for key, each in value.items())
    return ", ".join(f"{escaped(key)} {text}" for key, text in inner if text)


def _names(value: Sequence[object]) -> str:
    if not value or not all(isinstance(each, str) for each in value):
        return ""
    shown = ", ".join(code(str(each)) for each in value[:MOST_NAMES])
    more = len(value) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _single(name: str, value: object) -> str:
    """A number, a word or a name; nothing for what is none of them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return amount(value) if name == "bytes" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return code(value) if name in _NAMES else escaped(value)
    return ""


def _lists(body: Body) -> Iterator[str]:
    """Lists of objects (modules, files, tensors that differ), each folded away."""
    for name, value in body.items():
        rows = [each for each in value if isinstance(each, Mapping)] if _is_list(value) else []
        if name in _ELSEWHERE or not rows:
            continue
        yield ""
        yield from folded(f"{len(rows)} {escaped(name)}", _objects(rows))


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _objects(rows: Sequence[Body]) -> Iterator[str]:
    columns = [name for name in rows[0] if any(_single(name, row.get(name)) for row in rows)]
    heads = [escaped(name.replace("_", " ")) for name in columns]
    shown = rows[:MOST_ROWS]
    yield from table(heads, ([_single(name, row.get(name)) for name in columns] for row in shown))
    yield from _hidden(rows)


def _findings(findings: Sequence[Body]) -> Iterator[str]:
    rows = (
        (
            escaped(str(each["severity"])),
            code(str(each["code"])),
            _where(each),
            _said(each),
        )
        for each in islice(findings, MOST_ROWS)
    )
    yield from table(["severity", "code", "where", "finding"], rows)
    yield from _hidden(findings)


def _errors(errors: Sequence[Body]) -> Iterator[str]:
    heads = ["exit", "code", "where", "error"]
    rows = (
        (_single("", each["exit"]), code(str(each["code"])), _where(each), _said(each))
        for each in errors
    )
    yield from table(heads, rows)


def _where(place: Body) -> str:
    named = (place.get(name) for name in ("file", "tensor", "field"))
    return " ".join(code(str(each)) for each in named if each)


def _said(each: Body) -> str:
    hint = each.get("hint")
    told = escaped(str(each["message"]))
    return f"{told} <br>{escaped(str(hint))}" if hint else told


def _hidden(rows: Sequence[object]) -> Iterator[str]:
    more = len(rows) - MOST_ROWS
    if more > 0:
        yield ""
        yield f"and {more} more: --json lists them all"
