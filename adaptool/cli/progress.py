"""A bar of bytes on stderr, only where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from adaptool.cli.options import is_quiet

Report = Callable[[int, int], None]


@contextmanager
def byte_bar(title: str) -> Iterator[Report | None]:
    """A function to call with (bytes done, bytes in all); None where nothing would be seen."""
    if is_quiet(click.get_current_context()) or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    with _bar(title) as report:
        yield report


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    # rich costs 60 ms, which a run without a terminal need not pay.
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from adaptool.cli.rendering import console

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
