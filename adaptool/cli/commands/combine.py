"""`adaptool combine A B [C ...]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, printable
from adaptool.model.adapter_results import CombineResult
from adaptool.model.options import OutputDtype
from adaptool.model.published import shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("combine", short_help="Combine adapters with weights, without their base.")
@click.argument("adapters", type=values.artifact, nargs=-1, required=True, metavar="A B [C ...]")
@click.option(
    "--weights",
    type=values.numbers,
    metavar="W,W,...",
    help="One for each adapter, in order; 1 by default.",
)
@click.option(
    "--method",
    default="cat",
    show_default=True,
    metavar="METHOD",
    help="cat (exact), svd, linear, ties, dare_linear, dare_ties, magnitude_prune, della, sce, "
    "tsv, iso_c.",
)
@click.option("--rank", type=int, metavar="N", help="Truncate to this rank; all but cat need it.")
@click.option(
    "--base",
    type=values.artifact,
    metavar="BASE",
    help="The base: for saved modules, biases and token rows whose weights do not add up to 1; "
    "DoRA is summed as what it changes there, at --rank.",
)
@click.option(
    "--density",
    type=values.number,
    default=1.0,
    show_default=True,
    metavar="F",
    help="Share of the elements that ties, dare, della, sce and magnitude_prune keep.",
)
@click.option(
    "--majority-sign",
    default="total",
    show_default=True,
    metavar="total|frequency",
    help="How an element's sign is elected: by the sum, or one vote each.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    show_default=True,
    help="Of dare's and della's draws.",
)
@click.option(
    "--dtype",
    type=click.Choice([kind.value for kind in OutputDtype]),
    default=OutputDtype.FLOAT32.value,
    show_default=True,
    help="Dtype of the tensors written.",
)
@click.option("-o", "--out", type=values.destination, metavar="OUT", help="Default: ./combined.")
@options.adapters_reading
@options.attesting
@options.private
@options.writing
@options.machine
@options.output
def command(adapters: tuple[Path, ...], **flags: Any) -> Answer:  # noqa: ANN401
    """Write to OUT one adapter whose delta is the weighted sum of those of A, B, ...

    cat is exact: its rank is the sum of the ranks. --rank N gives the best approximation of that
    rank. The other methods are those of the papers that the README names.
    """
    from adaptool import api

    with byte_bar("combine") as progress:
        result = api.combine(*adapters, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: CombineResult) -> Iterator[RenderableType]:
    verb = "would write" if result.dry_run else "wrote"
    low, high = result.rank_min, result.rank_max
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    error = ""
    if result.exact:
        error = ", exact"
    elif result.relative_error is not None:
        error = f", relative error {result.relative_error:.3g}"
    out = printable(shown(result.out, result.published))
    yield (
        f"{verb} {out} ({byte_count(result.bytes)}): {result.method}, "
        f"{counted(result.module_count, 'module')}, {ranks}{error}"
    )
