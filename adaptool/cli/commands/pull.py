"""`adaptool pull hf://owner/name OUT`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, printable
from adaptool.model.hub_results import PullResult

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("pull", short_help="Download an adapter or a model, pinned and checked.")
@click.argument("uri", metavar="hf://OWNER/NAME[@REVISION][/FOLDER]")
@click.argument("out", type=values.local_path)
@click.option(
    "--require-pinned",
    is_flag=True,
    help="Refuse a branch or a tag: the revision must be the 40 digits of a commit.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Pull .bin and .pt files where there is nothing else."
)
@click.option(
    "--max-bytes",
    type=values.size,
    metavar="SIZE",
    help="Refuse where more would be pulled, such as 500MB or 2GiB.",
)
@options.checksum
@options.writing
@options.output
def command(uri: str, out: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """Download what an adapter or a model needs into the directory OUT.

    The revision is resolved to a commit, which the receipt records; every file is checked against
    the digest that the commit gives it. Run it again where it broke off.
    """
    from adaptool import api

    with byte_bar("pull") as progress:
        result = api.pull(uri, out, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: PullResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    if result.dry_run:
        yield table(("file", "size"), ((row.name, byte_count(row.bytes)) for row in result.files))
    verb = "would pull" if result.dry_run else "pulled"
    yield (
        f"{verb} {printable(result.repo)} at {printable(result.commit)} to "
        f"{printable(str(result.out))}: {counted(len(result.files), 'file')}, "
        f"{byte_count(result.bytes)}"
    )
