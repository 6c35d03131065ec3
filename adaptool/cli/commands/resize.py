"""`adaptool resize ADAPTER [OUT]`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, percent, printable
from adaptool.model.adapter_results import ResizedModule, ResizeResult
from adaptool.model.published import shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("resize", short_help="Change an adapter's rank, with the least error.")
@click.argument("adapter", type=values.artifact)
@click.argument("out", type=values.destination, required=False)
@click.option("--rank", type=int, metavar="N", help="This rank everywhere; lower ranks stay.")
@click.option(
    "--energy", type=values.number, metavar="F", help="Keep this share of the sum of squares."
)
@click.option(
    "--error", type=values.number, metavar="F", help="At most this relative error (Frobenius)."
)
@click.option(
    "--ratio",
    type=values.number,
    metavar="F",
    help="Keep singular values of at least F times the largest.",
)
@click.option(
    "--budget",
    type=values.size,
    metavar="SIZE",
    help="At most this size in all, as 50MB; ranks go where they cut the error most.",
)
@click.option(
    "--keep",
    type=values.number,
    metavar="F",
    help="At most this share of the factors' parameters, allotted in the same way.",
)
@click.option(
    "--min-rank",
    type=int,
    default=1,
    metavar="N",
    show_default=True,
    help="No module below this rank, unless it is already.",
)
@click.option("--max-rank", type=int, metavar="N", help="No module above this rank.")
@click.option(
    "--base",
    type=values.artifact,
    metavar="BASE",
    help="The base: DoRA's errors are then those of its merged weights.",
)
@options.adapter_dtype
@options.adapter_reading
@options.attesting
@options.private
@options.writing
@options.machine
@options.output
def command(adapter: Path, out: Path | None, **flags: Any) -> Answer:  # noqa: ANN401
    """Write ADAPTER at another rank to OUT (default ./NAME-resized), without its base model.

    Give one of --rank, --energy, --error, --ratio, --budget, --keep. Each module gets the best
    approximation of its delta at its rank; --dry-run prints the errors and writes nothing.
    """
    from adaptool import api

    with byte_bar("resize") as progress:
        result = api.resize(adapter, out, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: ResizeResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    heads = ("target", "modules", "rank before", "rank after", "relative error", "energy kept")
    yield table(heads, _grouped(result.modules))
    before, after = result.parameters_before, result.parameters_after
    verb = "would write" if result.dry_run else "wrote"
    yield (
        f"{verb} {printable(shown(result.out, result.published))} ({byte_count(result.bytes)}): "
        f"{counted(len(result.modules), 'module')}, {before:,} -> {after:,} parameters "
        f"({percent(after / before) if before else '0 %'}), "
        f"relative error {result.relative_error:.3g}"
    )


def _grouped(modules: tuple[ResizedModule, ...]) -> Iterator[tuple[object, ...]]:
    """One row for all modules of the same last name."""
    groups: dict[str, list[ResizedModule]] = defaultdict(list)
    for module in modules:
        groups[module.module.rpartition(".")[2]].append(module)
    for name, rows in sorted(groups.items()):
        yield (
            name,
            len(rows),
            _range([row.rank_before for row in rows]),
            _range([row.rank_after for row in rows]),
            _range([row.relative_error for row in rows]),
            _range([row.energy for row in rows]),
        )


def _range(numbers: list[int] | list[float]) -> str:
    low, high = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
    return low if low == high else f"{low} to {high}"
