"""The verb that makes one adapter of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.api.attesting import Attesting
from adaptool.api.door import Door, Progress
from adaptool.api.on_base import OnBase
from adaptool.api.output import Output
from adaptool.api.writing import Opened, Writing
from adaptool.engine.algebra import FactorAlgebra
from adaptool.model.adapter_results import CombineResult
from adaptool.model.algebra import Measured
from adaptool.model.combine_options import CombineOptions, weights_for
from adaptool.model.keywords import reads_keywords
from adaptool.model.options import Machine, OutputDtype, chosen
from adaptool.model.reading import Told
from adaptool.ops.combine import combined
from adaptool.ops.identity import settled
from adaptool.store.disk import Disk


@reads_keywords
def combine(
    *adapters: Path | str,
    out: Path | str | None = None,
    weights: Sequence[float] | None = None,
    method: str = "cat",
    rank: int | None = None,
    base: Path | str | None = None,
    density: float = 1.0,
    majority_sign: str = "total",
    seed: int = 0,
    dtype: str = "float32",
    expert_packing: str = "peft",
    alpha: Sequence[float] = (),
    scale: Sequence[float] = (),
    allow_drop: Sequence[str] = (),
    allow_pickle: bool = False,
    checksum: bool = False,
    provenance: Path | str | None = None,
    bom: Path | str | None = None,
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> CombineResult:
    """One adapter for several: by default (`cat`) their exact weighted sum.

    `weights` default to 1 each, `out` to ./combined. `base` is read where deltas are no product
    of factors (DoRA): their sum in its weights is then factored at `rank`; and where the weights
    of those that bring a tensor whole (saved modules, biases, token rows) do not add up to 1.
    `alpha` and `scale` are, in the order of the adapters, for files that carry no scale.
    """
    options = CombineOptions(
        weights_for(len(adapters), weights),
        method,
        rank,
        density,
        majority_sign,
        seed,
        chosen(OutputDtype, dtype, "--dtype"),
    )
    told = Told.of(alpha, scale, allow_drop, expert_packing)
    machine = Machine(device, threads)
    algebra = FactorAlgebra(machine)
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        beside = OnBase.opened(door, base, machine, weights=rank is not None)
        inputs = [
            Opened.at(door, Path(path), told.reading(place, beside.names), weight)
            for place, (path, weight) in enumerate(zip(adapters, options.weights, strict=True))
        ]
        target = Path(out) if out is not None else _default(inputs)
        named = settled([each.adapter for each in inputs], beside.names)
        made = combined(named, options, algebra, beside.based)
        attesting = Attesting.of(checksum=checksum, provenance=provenance, bom=bom)
        output = Output(
            target, "combine", machine, overwrite, progress, disk or Disk(), attesting, private
        )
        writing = Writing.to(output, dry_run=dry_run)
        given = beside.sources(inputs, decides=made.through_base)
        plan = writing.plan(made.adapter, given, options.as_json(), allow_drop, base=beside.names)
        notes = (*(note for each in inputs for note in each.adapter.findings), *made.findings)
        done = writing.write(replace(plan, findings=notes))
    ranks = [delta.terms.rank for delta in made.adapter.deltas if delta.terms.rank]
    error = _error(beside.measured(algebra.measured()), dry_run=dry_run)
    return CombineResult(
        out=target,
        method=method,
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        exact=made.exact,
        relative_error=0.0 if made.exact else error,
        module_count=len({delta.module for delta in made.adapter.deltas}),
        bytes=plan.bytes,
        findings=door.named(done.findings),
        dry_run=dry_run,
        published=done.published,
    )


def _default(inputs: Sequence[Opened]) -> Path:
    single = all(Path(each.files.name).is_file() for each in inputs)
    return Path("combined.safetensors" if single else "combined")


def _error(found: Measured, *, dry_run: bool) -> float | None:
    """Of all modules together; None where nothing was computed, or nothing has a norm."""
    if dry_run or not found.norm:
        return None
    return found.relative if math.isfinite(found.relative) else None
