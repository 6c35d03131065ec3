"""What people see: rich tables and lines, in which foreign text is never markup."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from adaptool.cli.text import printable
from adaptool.findings import Finding, Severity

# A pipe has no width: lines stay whole there, so that grep finds what it looks for.
_PIPE_WIDTH = 10_000
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_ORDER = tuple(Severity)


def console(*, stderr: bool) -> Console:
    """A console for stderr (remarks, progress), or one that writes for stdout into memory."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    return Console(
        file=sys.stderr if stderr else io.StringIO(),
        force_terminal=terminal or None,
        width=None if terminal else _PIPE_WIDTH,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
    )


def rendered(parts: Iterable[RenderableType]) -> str:
    """What stdout gets, as text, with colours where it is a terminal that shows them."""
    screen = console(stderr=False)
    with screen.capture() as captured:
        for part in parts:
            screen.print(part)
    return captured.get()


def show_findings(findings: Iterable[Finding]) -> None:
    """Remarks beside an answer, on stderr."""
    screen = console(stderr=True)
    for text in finding_lines(findings):
        screen.print(text)


def line(label: str, style: str, text: str) -> Text:
    """`label: text`, the label styled, the text printed as it is."""
    return Text.assemble((f"{label}: ", style), printable(text))


def error_lines(message: str, hint: str | None) -> Iterator[Text]:
    """`error: ...` and, where there is one, `hint: ...`."""
    yield line("error", "bold red", message)
    if hint:
        yield line("hint", "bold", hint)


def finding_lines(findings: Iterable[Finding]) -> Iterator[Text]:
    """One line a finding, errors first, each with its code, and its hint below."""
    for finding in sorted(findings, key=lambda finding: _ORDER.index(finding.severity)):
        where = [part for part in (finding.file, finding.tensor, finding.field) if part is not None]
        label = f"{finding.severity}[{finding.code}]"
        text = ": ".join(printable(part) for part in (*where, finding.message))
        yield Text.assemble((f"{label}: ", _STYLES[finding.severity]), text)
        if finding.hint:
            yield Text.assemble("  ", line("hint", "bold", finding.hint))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A table whose numbers stand to the right; a None is a dash."""
    body = [list(row) for row in rows]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for position, head in enumerate(heads):
        numeric = all(isinstance(row[position], int | float | None) for row in body)
        grid.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        grid.add_row(*(_cell(value) for value in row))
    return grid


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    return Text(f"{value:,}" if isinstance(value, int) else printable(str(value)))
