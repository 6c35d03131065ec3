"""`adaptool push PATH hf://owner/name`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, printable
from adaptool.model.hub_results import PushResult

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("push", short_help="Send an adapter or a model to the Hub in one commit.")
@click.argument("path", type=values.local_path)
@click.argument("uri", metavar="hf://OWNER/NAME[@BRANCH][/FOLDER]")
@click.option("--private", is_flag=True, help="The repository must be private; a new one is.")
@click.option("--create-pr", is_flag=True, help="Propose the commit as a pull request.")
@click.option("--message", metavar="TEXT", help="The commit's message.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what would be sent.")
@options.output
def command(path: Path, uri: str, **flags: Any) -> Answer:  # noqa: ANN401
    """Check the adapter or model at PATH and send it to the Hub, all files in one commit.

    Pickles, access tokens and files that belong to no artifact are refused before the network is
    touched. The card gets the front matter that it lacks; its text stays.
    """
    from adaptool import api

    with byte_bar("push") as progress:
        result = api.push(path, uri, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: PushResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    sent = f"{counted(len(result.files), 'file')}, {byte_count(result.bytes)}"
    if result.dry_run:
        yield table(("file", "size"), ((row.name, byte_count(row.bytes)) for row in result.files))
        yield f"would push {sent} to {printable(result.repo)}"
    else:
        yield f"pushed {sent}: {printable(result.url or '')}"
