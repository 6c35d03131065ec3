"""`adaptool unmerge MERGED ADAPTER OUT`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, printable
from adaptool.model.published import shown
from adaptool.model.unmerged import UnmergeResult

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("unmerge", short_help="Restore the base of a merged model.")
@click.argument("merged", type=values.artifact)
@click.argument("adapter", type=values.artifact)
@click.argument("out", type=values.destination)
@options.adding(receipt=True)
@options.init_adapter
@click.option("--exact", is_flag=True, help="Refuse where not every byte can be restored.")
@options.recorded_reading
@options.checksum
@options.private
@options.writing
@options.machine
@options.output
def command(merged: Path, adapter: Path, out: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """Write to OUT the base that MERGED was made of with ADAPTER.

    Bit for bit where the merge was --reversible; else by subtracting, and the largest possible
    error is said. Weights and options come from the receipt in MERGED.
    """
    from adaptool import api

    with byte_bar("unmerge") as progress:
        result = api.unmerge(
            merged, adapter, out, progress=progress, **options.unless_recorded(flags)
        )
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: UnmergeResult) -> Iterator[RenderableType]:
    verb = "would restore" if result.dry_run else "restored"
    out, size = printable(shown(result.out, result.published)), byte_count(result.bytes)
    what = f"{verb} {result.touched} of {counted(result.total, 'tensor')} into {out} ({size})"
    yield f"{what}: {_how(result)}"


def _how(result: UnmergeResult) -> str:
    if result.exact:
        return "every byte is the base's"
    if result.bound is None:
        return "by subtracting; how far it is from the base is not known"
    return f"by subtracting, at most {counted(result.bound, 'step')} of the dtype from the base"
