"""`adaptool inspect PATH...`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options
from adaptool.cli.answer import Answer
from adaptool.cli.text import byte_count, counted, percent, printable
from adaptool.cli.values import local_path
from adaptool.errors import AdaptoolError, gathered
from adaptool.model.results import AdapterSummary, CheckpointSummary, ModuleRow

if TYPE_CHECKING:
    from rich.console import RenderableType

Summary = AdapterSummary | CheckpointSummary


@click.command("inspect", short_help="Say what an adapter or checkpoint is.")
@click.argument("paths", type=local_path, nargs=-1, required=True, metavar="PATH...")
@options.values_flag
@click.option("--base", type=local_path, metavar="BASE", help="Compare sizes with this base.")
@options.allow_pickle
@options.output
def command(
    paths: tuple[Path, ...], base: Path | None, *, values: bool, allow_pickle: bool
) -> Answer:
    """Show layout, tuner, ranks, scales, targets, sizes and provenance of each PATH."""
    summaries = _summaries(paths, base=base, values=values, allow_pickle=allow_pickle)
    bodies = [summary.as_json() for summary in summaries]
    return Answer(
        body=bodies[0] if len(bodies) == 1 else {"items": bodies},
        people=lambda: (part for summary in summaries for part in _people(summary)),
        findings=tuple(finding for summary in summaries for finding in summary.findings),
    )


def _summaries(paths: tuple[Path, ...], **flags: Any) -> list[Summary]:  # noqa: ANN401
    from adaptool import api

    summaries: list[Summary] = []
    errors: list[AdaptoolError] = []
    for path in paths:
        try:
            summaries.append(api.inspect(path, **flags))
        except AdaptoolError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return summaries


def _people(summary: Summary) -> Iterator[RenderableType]:
    if isinstance(summary, AdapterSummary):
        yield from _adapter(summary)
    else:
        yield from _checkpoint(summary)


def _facts(path: str, kind: str, facts: dict[str, object]) -> Iterator[RenderableType]:
    yield f"{printable(path)}: {kind}"
    for name, value in facts.items():
        if value is not None and value != "":
            yield f"  {name}: {printable(str(value))}"


def _adapter(summary: AdapterSummary) -> Iterator[RenderableType]:
    share = summary.share_of_base
    of_base = f" ({percent(share)} of the base)" if share is not None else ""
    facts: dict[str, object] = {
        "layout": summary.layout,
        "tuners": _counts(summary.tuners),
        "base": summary.base,
        "modules": len(summary.modules),
        "parameters": f"{summary.parameters:,}{of_base}",
        "size": byte_count(summary.bytes),
        "dtypes": _counts(summary.dtypes),
        "carried": ", ".join(summary.carried),
        **summary.provenance,
    }
    yield from _facts(summary.path, "adapter", facts)
    if summary.modules:
        from adaptool.cli.rendering import table

        with_values = any(row.norm is not None for row in summary.modules)
        heads = ("target", "tuner", "rank", "scaling", "modules", "shape", "parameters", "saving")
        more = ("norm", "effective rank", "not finite") if with_values else ()
        yield table((*heads, *more), _grouped(summary.modules, with_values=with_values))


def _key(row: ModuleRow) -> tuple[Any, ...]:
    # A None does not compare with a number; its absence does.
    suffix = row.module.rpartition(".")[2]
    return (
        suffix,
        row.tuner,
        row.rank is None,
        row.rank or 0,
        row.scaling is None,
        row.scaling or 0,
    )


def _grouped(modules: tuple[ModuleRow, ...], *, with_values: bool) -> Iterator[tuple[object, ...]]:
    """One row for all modules of the same last name, tuner, rank and scaling."""
    for key, found in groupby(sorted(modules, key=_key), key=_key):
        rows = list(found)
        shapes = {row.shape for row in rows}
        shape = " x ".join(map(str, rows[0].shape)) if len(shapes) == 1 else "various"
        parameters = sum(row.parameters for row in rows)
        first = rows[0]
        row: tuple[object, ...] = (
            key[0],
            first.tuner,
            first.rank,
            first.scaling,
            len(rows),
            shape,
            parameters,
        )
        row = (*row, _saving(rows))
        yield (*row, *_spread(rows)) if with_values else row


def _saving(rows: list[ModuleRow]) -> str | None:
    """How many times smaller the factors are than the full delta."""
    known = _range([row.saving for row in rows])
    return f"{known} x" if known else None


def _spread(rows: list[ModuleRow]) -> tuple[object, ...]:
    norms = _range([row.norm for row in rows])
    ranks = _range([row.effective_rank for row in rows])
    return (norms, ranks, sum(row.nonfinite or 0 for row in rows))


def _range(numbers: list[float | None]) -> str | None:
    known = [number for number in numbers if number is not None]
    if not known:
        return None
    low, high = f"{min(known):.4g}", f"{max(known):.4g}"
    return low if low == high else f"{low} to {high}"


def _checkpoint(summary: CheckpointSummary) -> Iterator[RenderableType]:
    facts: dict[str, object] = {
        "architecture": summary.architecture,
        "tensors": summary.tensor_count,
        "shards": counted(len(summary.shards), "file"),
        "parameters": f"{summary.parameters:,}",
        "size": byte_count(summary.bytes),
        "dtypes": _counts(summary.dtypes),
        "quantization": summary.quantization,
        "tied": "; ".join(" = ".join(group) for group in summary.tied),
    }
    yield from _facts(summary.path, "checkpoint", facts)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
