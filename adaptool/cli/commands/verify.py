"""`adaptool verify BASE ADAPTER MERGED`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import counted, percent
from adaptool.errors import CheckFailed
from adaptool.model.results import VerifyResult

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 50


@click.command("verify", short_help="Recompute a merge and name what differs.")
@click.argument("base", type=values.artifact)
@click.argument("adapter", type=values.artifact)
@click.argument("merged", type=values.artifact)
@options.adding(receipt=True)
@options.arithmetic(receipt=True)
@click.option("--exact", is_flag=True, help="Not even one step of the dtype may differ.")
@options.machine
@options.output
def command(base: Path, adapter: Path, merged: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """Recompute what BASE and ADAPTER make and compare MERGED with it; exit 1 where it differs.

    Options of the merge come from the receipt in MERGED unless they are given.
    """
    from adaptool import api

    with byte_bar("verify") as progress:
        result = api.verify(
            base, adapter, merged, progress=progress, **options.unless_recorded(flags)
        )
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        exit=0 if result.ok else CheckFailed.exit,
        asked=False,
    )


def _people(result: VerifyResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    if result.different:
        heads = ("tensor", "max steps", "differing", "why")
        yield table(
            heads,
            (
                (each.tensor, each.max_ulp, percent(each.fraction), each.reason)
                for each in result.different[:MOST_ROWS]
            ),
        )
        hidden = len(result.different) - MOST_ROWS
        if hidden > 0:
            yield f"and {hidden} more: --json lists them all"
    checked = counted(result.checked, "tensor")
    yield f"ok: {checked} checked" if result.ok else f"{len(result.different)} of {checked} differ"
