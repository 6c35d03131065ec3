"""A picture of what `inspect` found: one self-contained HTML page that is well-formed XML too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low

from adaptool.findings import Finding
from adaptool.model.inspected import Inspected, Summary
from adaptool.model.module_grid import Cell, Scale, arranged, target_order
from adaptool.model.results import ENERGY_SHARES, AdapterSummary, CheckpointSummary, ModuleRow
from adaptool.pages.curves import depth_key, panels, spectra
from adaptool.pages.heat import heatmaps, matrix, shared_scale
from adaptool.pages.style import sheet
from adaptool.pages.text import (
    count,
    escaped,
    middle_and_most,
    number,
    percent,
    short_names,
    spread,
)
from adaptool.store.disk import amount

FOOTER = (
    "<footer>Drawn by adaptool. Δ is the scaled delta, |·| the Frobenius norm, energy the sum of "
    "squared singular values. Point at a cell or a curve to see its module.</footer>"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(found: Inspected) -> str:
    """The whole page; the same text for the same results."""
    names = short_names([item.path for item in found.items])
    title = names[0] if len(names) == 1 else _several(found)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>',
            '<meta name="color-scheme" content="light dark"/>',
            f"<title>{escaped(title)}</title>",
            f"<style>\n{sheet()}</style></head><body><main>",
            *_body(found, names),
            FOOTER,
            "</main></body></html>\n",
        ]
    )


def _several(found: Inspected) -> str:
    adapters = all(isinstance(item, AdapterSummary) for item in found.items)
    return f"{len(found.items)} {'adapters' if adapters else 'artifacts'}"


def _body(found: Inspected, names: Sequence[str]) -> Iterator[str]:
    several = len(names) > 1
    if several:
        yield f"<h1>{_several(found)}</h1>"
    if found.similarity is not None:
        yield "<h3>Similarity</h3>"
        yield '<p class="note">Cosine between whole adapters over the union of their modules: '
        yield "1 is the same direction, 0 unrelated, -1 opposite; a dash where a delta is "
        yield "no product of low rank, or nothing.</p>"
        yield from matrix(names, found.similarity)
    adapters = [item for item in found.items if isinstance(item, AdapterSummary)]
    relative = any(row.relative_norm is not None for item in adapters for row in item.modules)
    if len(adapters) > 1:
        yield from _overview(names, found.items, relative=relative)
    scale = shared_scale((arranged(item.modules) for item in adapters), relative=relative)
    for name, item in zip(names, found.items, strict=True):
        yield f"<h2>{escaped(name)}</h2>" if several else f"<h1>{escaped(name)}</h1>"
        if isinstance(item, AdapterSummary):
            yield from _adapter(item, scale, relative=relative)
        else:
            yield from _checkpoint(item)


def _overview(names: Sequence[str], items: Sequence[Summary], *, relative: bool) -> Iterator[str]:
    """The adapters side by side, a line each."""
    yield "<h3>Side by side</h3>"
    yield from _table(
        ("adapter", "modules", "parameters", *_columns(relative=relative)),
        (
            (
                escaped(name),
                f"{len(item.modules):,}",
                count(item.parameters),
                *_numbers(item.modules, relative=relative),
            )
            for name, item in zip(names, items, strict=True)
            if isinstance(item, AdapterSummary)
        ),
    )


def _adapter(item: AdapterSummary, scale: Scale | None, *, relative: bool) -> Iterator[str]:
    tuners = ", ".join(f"{name} on {count} modules" for name, count in item.tuners.items())
    of_base = f", for <code>{escaped(item.base)}</code>" if item.base else ""
    yield f'<p class="note">{escaped(item.layout)} adapter: {escaped(tuners)}{of_base}</p>'
    yield from _facts(_adapter_facts(item))
    yield from _headline(item.modules)
    found = arranged(item.modules)
    if scale is not None and found.grids:
        what = "Size of the change, relative to the weights" if relative else "Size of the change"
        yield f"<h3>{what}</h3>"
        yield '<p class="note">Layers from left to right, one row a target.</p>'
        yield from heatmaps(found, scale, relative=relative)
    curves = panels(found)
    if curves:
        yield "<h3>Spectra</h3>"
        yield '<p class="note">Energy that the best approximation of each rank keeps. Where the '
        yield "bold curve, the median, passes 90 and 99 % a dot names the rank.</p>"
        yield depth_key() if found.grids else ""
        yield from spectra(curves)
    yield from _tables(item.modules, relative=relative)
    yield from _remarks(item.findings)


def _adapter_facts(item: AdapterSummary) -> Iterator[tuple[str, str]]:
    ranks, scaling = item.ranks, item.scaling
    whole = Cell(tuple(row for row in item.modules if row.norm is not None))
    yield "modules", f"{len(item.modules):,}"
    share = f" <small>{percent(item.share_of_base)} of the base</small>"
    yield "parameters", count(item.parameters) + (share if item.share_of_base else "")
    yield "size", amount(item.bytes)
    yield "rank", spread([ranks["min"], ranks["max"]])
    yield "scaling", spread([scaling["min"], scaling["max"]]) if scaling else number(None)
    yield "|Δ| in all", number(whole.norm)
    if whole.relative is not None:
        yield "|Δ| / |W| in all", percent(whole.relative)
    if item.carried:
        yield "whole tensors", f"{len(item.carried):,}"


def _facts(facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield '<dl class="facts">'
    for name, value in facts:
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>"
    yield "</dl>"


def _headline(rows: Sequence[ModuleRow]) -> Iterator[str]:
    """One sentence: which rank would have done."""
    known = [(row.rank_at(0.99) or 0, len(row.energy)) for row in rows if row.energy and row.norm]
    if not known:
        return
    usual, most = median_low(rank for rank, _ in known), max(rank for rank, _ in known)
    rank = max(rank for _, rank in known)
    yield (
        f"<p>Half of the modules keep 99 % of their energy at rank {usual} or less, all of them "
        f"at rank {most} (of {rank}).</p>"
    )


def _tables(rows: Sequence[ModuleRow], *, relative: bool) -> Iterator[str]:
    groups: dict[str, list[ModuleRow]] = {}
    for row in sorted(rows, key=lambda row: target_order(row.module)):
        groups.setdefault(row.target, []).append(row)
    if len(groups) < len(rows):
        yield "<h3>Targets</h3>"
        yield '<p class="note">Ranks that half of the modules do not exceed, and the largest.</p>'
        yield from _table(
            ("target", "modules", *_columns(relative=relative)),
            (
                (escaped(name), f"{len(each):,}", *_numbers(each, relative=relative))
                for name, each in groups.items()
            ),
        )
    yield f"<details><summary>All {len(rows):,} modules</summary>"
    yield from _table(
        ("module", "tuner", *_columns(relative=relative)),
        (
            (
                f"<code>{escaped(row.module)}</code>",
                escaped(row.tuner),
                *_numbers([row], relative=relative),
            )
            for row in rows
        ),
    )
    yield "</details>"


def _columns(*, relative: bool) -> tuple[str, ...]:
    sizes = ("|Δ|", "|Δ| / |W|") if relative else ("|Δ|",)
    return ("rank", *sizes, "effective rank", *(f"at {100 * at:g} %" for at in ENERGY_SHARES))


def _numbers(rows: Sequence[ModuleRow], *, relative: bool) -> tuple[str, ...]:
    known = [100 * row.relative_norm for row in rows if row.relative_norm is not None]
    of_base = f"{spread(known)} %" if known else number(None)
    return (
        spread(row.rank for row in rows),
        spread(row.norm for row in rows),
        *((of_base,) if relative else ()),
        middle_and_most(row.effective_rank for row in rows),
        *(middle_and_most(row.rank_at(share) for row in rows) for share in ENERGY_SHARES),
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    shown = "".join(f'<th scope="col">{head}</th>' for head in heads)
    yield f'<div class="card wide"><table><thead><tr>{shown}</tr></thead><tbody>'
    for row in rows:
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def _checkpoint(item: CheckpointSummary) -> Iterator[str]:
    yield f'<p class="note">checkpoint, {escaped(item.architecture or "no config")}</p>'
    facts = [
        ("tensors", f"{item.tensor_count:,}"),
        ("shards", f"{len(item.shards):,}"),
        ("parameters", count(item.parameters)),
        ("size", amount(item.bytes)),
        ("dtypes", escaped(", ".join(item.dtypes))),
    ]
    if item.quantization:
        facts.append(("quantization", escaped(item.quantization)))
    yield from _facts(facts)
    yield from _remarks(item.findings)


def _remarks(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield "<h3>Findings</h3><ul>"
    for finding in findings:
        where = ": ".join(part for part in (finding.tensor, finding.field) if part)
        place = f"<code>{escaped(where)}</code> " if where else ""
        yield f'<li class="{finding.severity}"><b>{finding.code}</b> {place}'
        yield f"{escaped(finding.message)}</li>"
    yield "</ul>"
