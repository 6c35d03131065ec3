"""`adaptool extract BASE TUNED OUT`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, printable
from adaptool.model.adapter_results import ExtractResult
from adaptool.model.options import OutputDtype
from adaptool.model.published import shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("extract", short_help="Make an adapter of the difference of two models.")
@click.argument("base", type=values.artifact)
@click.argument("tuned", type=values.artifact)
@click.argument("out", type=values.destination)
@click.option("--rank", type=int, metavar="N", help="This rank for every matrix.")
@click.option(
    "--energy",
    type=values.number,
    metavar="F",
    help="The least rank that keeps this share of a matrix's sum of squares.",
)
@click.option("--exact", is_flag=True, help="Never a randomised subspace; slower.")
@click.option(
    "--dtype",
    type=click.Choice([kind.value for kind in OutputDtype]),
    default=OutputDtype.FLOAT32.value,
    show_default=True,
    help="Dtype of the tensors written.",
)
@options.allow_drop
@options.allow_pickle
@options.attesting
@options.private
@options.writing
@options.machine
@options.output
def command(base: Path, tuned: Path, out: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """Write to OUT the adapter that turns BASE into TUNED: merged into BASE it gives TUNED again.

    Matrices become LoRA factors at --rank or --energy, with the error stated; norms, biases and
    what would take as much room as factors are carried whole.
    """
    from adaptool import api

    with byte_bar("extract") as progress:
        result = api.extract(base, tuned, out, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: ExtractResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    worst = sorted(result.modules, key=lambda row: row.relative_error or 0.0, reverse=True)[:10]
    if worst and worst[0].relative_error is not None:
        yield table(
            ("module (largest errors)", "rank", "relative error"),
            ((row.module, row.rank, f"{row.relative_error or 0.0:.3g}") for row in worst),
        )
    verb = "would write" if result.dry_run else "wrote"
    error = "" if result.relative_error is None else f", relative error {result.relative_error:.3g}"
    yield (
        f"{verb} {printable(shown(result.out, result.published))} ({byte_count(result.bytes)}): "
        f"{counted(len(result.modules), 'module')}, {len(result.saved)} tensors whole, "
        f"{result.unchanged} unchanged{error}"
    )
