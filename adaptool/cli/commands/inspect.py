"""`adaptool inspect PATH...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options
from adaptool.cli.answer import Answer
from adaptool.cli.text import byte_count, counted, percent, printable
from adaptool.cli.values import artifact, local_path
from adaptool.model.inspected import Inspected, Summary
from adaptool.model.results import ENERGY_SHARES, AdapterSummary, CheckpointSummary, ModuleRow

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("inspect", short_help="Say what an adapter or checkpoint is.")
@click.argument("paths", type=artifact, nargs=-1, required=True, metavar="PATH...")
@options.values_flag
@click.option(
    "--base", type=artifact, metavar="BASE", help="Compare sizes, with --values norms as well."
)
@click.option(
    "--html",
    type=local_path,
    metavar="FILE",
    help="Draw a page of its own: heatmap, spectra, similarity. Reads the weights.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@options.adapters_reading
@options.output
def command(paths: tuple[Path, ...], html: Path | None, **flags: Any) -> Answer:  # noqa: ANN401
    """Show layout, tuner, ranks, scales, targets, sizes and provenance of each PATH.

    With --values also norms, effective ranks, the ranks that keep 90, 99 and 99.9 % of the energy
    and, of several adapters, the cosines between them.
    """
    from adaptool import api

    found = api.inspect(*paths, html=html, **flags)
    several = found if isinstance(found, Inspected) else Inspected((found,), None)
    body = found.as_json() | ({"html": str(html)} if html is not None else {})
    return Answer(body=body, people=lambda: _shown(several, html), findings=several.findings)


def _shown(found: Inspected, html: Path | None) -> Iterator[RenderableType]:
    for item in found.items:
        yield from _people(item)
    if found.similarity is not None:
        yield from _similarity(found, found.similarity)
    if html is not None:
        yield f"drawn: {printable(str(html))}"


def _similarity(
    found: Inspected, cosines: tuple[tuple[float | None, ...], ...]
) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    yield "similarity (cosine between whole adapters)"
    numbers = range(1, len(cosines) + 1)
    yield table(
        ("", *(f"[{number}]" for number in numbers)),
        (
            (f"[{number}] {item.path}", *(_rounded(cosine) for cosine in row))
            for number, item, row in zip(numbers, found.items, cosines, strict=True)
        ),
    )


def _rounded(cosine: float | None) -> float | None:
    return None if cosine is None else round(cosine, 4)


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
        **{f"  {name}": _properties(found) for name, found in summary.tuner_properties.items()},
        "base": summary.base,
        "modules": len(summary.modules),
        "parameters": f"{summary.parameters:,}{of_base}",
        "size": byte_count(summary.bytes),
        "dtypes": _counts(summary.dtypes),
        "carried": ", ".join(summary.carried),
        **summary.provenance,
    }
    yield from _facts(summary.path, "adapter", facts)
    with_values = any(row.norm is not None for row in summary.modules)
    if summary.modules:
        from adaptool.cli.rendering import table

        heads = ("target", "tuner", "rank", "scaling", "modules", "shape", "parameters", "saving")
        more = _MORE if with_values else ()
        relative = any(row.relative_norm is not None for row in summary.modules)
        heads = (*heads, *more, *(("norm / base",) if relative else ()))
        yield table(heads, _grouped(summary.modules, with_values=with_values, relative=relative))
    if with_values:
        from adaptool.cli.heatmap import heatmap

        yield from heatmap(summary.modules)


_MORE = ("norm", "effective rank", *(f"at {100 * at:g} %" for at in ENERGY_SHARES), "not finite")


_TILES = {
    "any": "merged by tiles",
    "rows": "merged by whole rows",
    "whole": "needs whole weights at once",
}


def _properties(found: dict[str, Any]) -> str:
    """`LoRA: additive, low-rank, merged by tiles, invertible: rounding`."""
    words = [
        "additive" if found["additive"] else "depends on the base's weights",
        *(["low-rank"] if found["low_rank"] else []),
        _TILES[found["tile"]],
        f"invertible: {found['invertible']}",
    ]
    return f"{found['title']}: {', '.join(words)}"


def _key(row: ModuleRow) -> tuple[Any, ...]:
    # A None does not compare with a number; its absence does.
    return (
        row.target,
        row.tuner,
        row.rank is None,
        row.rank or 0,
        row.scaling is None,
        row.scaling or 0,
    )


def _grouped(
    modules: tuple[ModuleRow, ...], *, with_values: bool, relative: bool
) -> Iterator[tuple[object, ...]]:
    """One row for all modules of the same last name, tuner, rank and scaling."""
    for key, found in groupby(sorted(modules, key=_key), key=_key):
        rows = list(found)
        shapes = {row.shape for row in rows}
        # A size of 0 stands in no tensor of the adapter: the base has it.
        sizes = " x ".join(str(size or "?") for size in rows[0].shape)
        shape = sizes if len(shapes) == 1 else "various"
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
        row = (*row, _saving(rows), *(_spread(rows) if with_values else ()))
        yield (*row, _range([row.relative_norm for row in rows])) if relative else row


def _saving(rows: list[ModuleRow]) -> str | None:
    """How many times smaller the factors are than the full delta."""
    known = _range([row.saving for row in rows])
    return f"{known} x" if known else None


def _spread(rows: list[ModuleRow]) -> tuple[object, ...]:
    norms = _range([row.norm for row in rows])
    ranks = _range([row.effective_rank for row in rows])
    kept = (_range([row.rank_at(share) for row in rows]) for share in ENERGY_SHARES)
    return (norms, ranks, *kept, sum(row.nonfinite or 0 for row in rows))


def _range(numbers: Sequence[float | None]) -> str | None:
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
