"""--summary: what a command did, or the error that it ended in, for the page of a CI job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli.answer import Answer
from adaptool.cli.boundary import error_body, translated
from adaptool.errors import OutputError

if TYPE_CHECKING:
    from adaptool.api.summaries import JobSummary

_SUMMARY = "adaptool.summary"
_COMMAND = "adaptool.summarized"


def remember(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    """The option's callback: refuses at once a file that nothing can be added to."""
    if value is not None:
        from adaptool.api.summaries import JobSummary

        context.meta[_SUMMARY] = JobSummary.at(value)
        context.meta[_COMMAND] = context


def summarized(context: click.Context, work: Callable[[], Answer]) -> Answer:
    """The answer of `work`, which runs a command; told in the summary, and so is what it raises.

    OutputError where all went well but the summary could not be written.
    """
    try:
        answer = work()
    except click.exceptions.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        told = translated(error)
        try:
            _add(context, error_body(told))
        except OutputError as unwritten:
            told.others = (*told.others, unwritten)
        raise
    _add(context, answer.body)
    return answer


def _add(context: click.Context, body: Mapping[str, Any]) -> None:
    file: JobSummary | None = context.meta.get(_SUMMARY)
    if file is not None:
        command: click.Context = context.meta[_COMMAND]
        file.add(command.info_name or "", list(_arguments(command)), body)


def _arguments(command: click.Context) -> Iterator[Path | str]:
    """What stands on the command line without a flag, as far as it was parsed."""
    for parameter in command.command.params:
        found = command.params.get(parameter.name or "")
        if isinstance(parameter, click.Argument) and found is not None:
            yield from found if isinstance(found, tuple) else (found,)
