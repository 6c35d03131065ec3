"""`adaptool merge BASE ADAPTER OUT`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, percent, printable
from adaptool.model.published import shown
from adaptool.model.results import MergeResult, MergeStats

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("merge", short_help="Merge adapters into a base, shard by shard.")
@click.argument("base", type=values.artifact)
@click.argument("adapter", type=values.artifact)
@click.argument("out", type=values.destination)
@options.adding(receipt=False)
@options.arithmetic(receipt=False)
@click.option(
    "--max-shard-size",
    type=values.size_or_keep,
    default="keep",
    metavar="keep|SIZE",
    show_default=True,
    help="Split the output anew, as 5GB or 2GiB; keep: the base's own shards.",
)
@click.option(
    "--allow-lossy",
    is_flag=True,
    help="With --quantized keep: write even where less than half of a delta survives.",
)
@click.option(
    "--reversible",
    is_flag=True,
    help="Keep beside the weights what unmerge needs to restore every byte of BASE.",
)
@options.attesting
@options.private
@options.writing
@options.machine
@options.output
def command(base: Path, adapter: Path, out: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """Write to OUT the model that BASE with ADAPTER is: W + sum of w * (f(W) - W), rounded once.

    OUT is complete or absent, whatever happens; after an interruption the same command goes on
    where it stopped. With OUT = hf://OWNER/NAME each shard is uploaded and removed as soon as it is
    finished, and one commit names them all at the end.
    """
    from adaptool import api

    with byte_bar("merge") as progress:
        result = api.merge(base, adapter, out, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: MergeResult) -> Iterator[RenderableType]:
    yield from _plan(result.plan)
    yield from _recoded(result.stats)
    yield _summary(result)


def _summary(result: MergeResult) -> str:
    verb = "would merge" if result.dry_run else "merged"
    out = printable(shown(result.out, result.published))
    what = f"{verb} {result.touched} of {counted(result.total, 'tensor')} into {out}"
    if result.dry_run:
        return f"{what} ({byte_count(result.bytes)}); nothing was written"
    done = f"{what} ({byte_count(result.bytes)}, {result.seconds:.1f} s)"
    stats = [
        f"{percent(fraction)} of the {text}"
        for fraction, text in (
            (result.stats.changed_fraction, "touched elements changed"),
            (result.stats.retained, "delta survived rounding"),
        )
        if fraction is not None
    ]
    if result.stats.quantization_ratio is not None:
        stats.append(f"4-bit error {result.stats.quantization_ratio:.3g} x the delta")
    return f"{done}: {', '.join(stats)}" if stats else done


def _plan(plan: dict[str, Any] | None) -> Iterator[RenderableType]:
    """The rows an adapter touches, then the files; rows copied as they are stand in --json."""
    if plan is None:
        return
    from adaptool.cli.rendering import table

    rows = plan["tensors"]
    touched = [row for row in rows if "deltas" in row or "replaced_by" in row]
    yield table(("tensor", "dtype", "shape", "file", "change"), map(_row, touched))
    held = Counter(row["file"] for row in rows)
    changed = Counter(row["file"] for row in touched)
    yield table(
        ("file", "tensors", "touched", "size"),
        (
            (name, held[name], changed[name], byte_count(file["bytes"]))
            for file in plan["files"]
            for name in [file["name"]]
        ),
    )
    if plan["documents"]:
        yield f"also: {', '.join(map(printable, plan['documents']))}"


def _recoded(stats: MergeStats) -> Iterator[RenderableType]:
    """How much of its delta each weight kept that was stored in its packed format again."""
    if not stats.recoded:
        return
    from adaptool.cli.rendering import table

    rows = ((name, None if kept is None else percent(kept)) for name, kept in stats.recoded.items())
    yield table(("stored again", "delta kept"), rows)


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    deltas = [f"{delta['tuner']} x {delta['weight']:.4g}" for delta in row.get("deltas", ())]
    values = [f"replaced x {blend['weight']:.4g}" for blend in row.get("replaced_by", ())]
    shape = " x ".join(map(str, row["shape"]))
    return (row["tensor"], row["dtype"], shape, row["file"], ", ".join(deltas + values))
