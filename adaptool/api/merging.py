"""The verbs of weight space: merge and verify."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.api.attesting import Attesting
from adaptool.api.door import Door, Progress
from adaptool.api.output import Delivered, Output
from adaptool.engine.compare import ComparingOutlet
from adaptool.engine.reversing import Reversing
from adaptool.engine.run import run
from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.keywords import reads_keywords
from adaptool.model.options import Machine, MergeOptions, Strength
from adaptool.model.plan import Plan
from adaptool.model.results import MergeResult, VerifyResult
from adaptool.ops.merge import plan_merge
from adaptool.ops.parts import opened_parts
from adaptool.ops.reversal import reversible as with_sidecar
from adaptool.ops.verify import options_of, structure
from adaptool.store.checkpoint import Checkpoint, open_checkpoint
from adaptool.store.disk import Disk
from adaptool.store.documents import read_json_object
from adaptool.store.own_files import LARGEST_RECEIPT, RECEIPT

BYTES = -1  # verify's tolerance: even -0 for 0 counts


@reads_keywords
def merge(
    base: Path | str,
    adapter: Path | str,
    out: Path | str,
    *,
    weight: float = 1.0,
    add: Sequence[Path | str | Strength] = (),
    dtype: str = "keep",
    precision: str = "float64",
    max_shard_size: int | None = None,
    tie: str = "untie",
    quantized: str = "all",
    qlora_base: str = "original",
    expert_packing: str = "peft",
    alpha: Sequence[float] = (),
    scale: Sequence[float] = (),
    init_adapter: Path | str | None = None,
    skip_unmatched: bool = False,
    allow_drop: Sequence[str] = (),
    allow_lossy: bool = False,
    allow_pickle: bool = False,
    reversible: bool = False,
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
) -> MergeResult:
    """Merge adapters into a base, shard by shard, into the new directory or repository `out`.

    The result is `W + sum_i w_i (f_i(W) - W)`, rounded once. With `reversible` the sidecar
    `adaptool.unmerge` keeps what `unmerge` needs to restore every byte of the base. Raises an
    AdaptoolError and leaves `out` as it was where anything is wrong.
    """
    began = time.monotonic()
    options = MergeOptions().given(
        dtype=dtype,
        precision=precision,
        max_shard_size=max_shard_size,
        tie=tie,
        quantized=quantized,
        qlora_base=qlora_base,
        expert_packing=expert_packing,
        alpha=alpha,
        scale=scale,
        skip_unmatched=skip_unmatched,
        allow_drop=allow_drop,
        allow_lossy=allow_lossy,
    )
    strengths = [Strength(Path(adapter), weight), *map(_strength, add)]
    machine, used = Machine(device, threads), disk or Disk()
    attesting = Attesting.of(checksum=checksum, provenance=provenance, bom=bom)
    output = Output(Path(out), "merge", machine, overwrite, progress, used, attesting, private)
    first = [base] if init_adapter is None else [base, init_adapter]
    inputs = [*map(Path, first), *(strength.path for strength in strengths)]
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        here = _base_of_merge(door, Path(base), used, whole=reversible, dry_run=dry_run)
        plan, opened = _planned(door, here, strengths, options, init_adapter)
        besides = None
        if reversible:
            plan, reversal = with_sidecar(plan, opened)
            besides = Reversing(reversal, machine, options.precision)
            output.check(plan, inputs, more_bytes=reversal.stored_bytes)
        else:
            output.check(plan, inputs, streamed=True)
        if dry_run:
            return _merge_result(output, plan, Delivered.nothing(device), began, dry_run=True)
        done = output.stream(plan) if besides is None else output.write(plan, besides=besides)
    return _merge_result(output, plan, done, began)


@reads_keywords
def verify(
    base: Path | str,
    adapter: Path | str,
    merged: Path | str,
    *,
    weight: float | None = None,
    add: Sequence[Path | str | Strength] = (),
    dtype: str | None = None,
    precision: str | None = None,
    tie: str | None = None,
    quantized: str | None = None,
    qlora_base: str | None = None,
    expert_packing: str | None = None,
    alpha: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    init_adapter: Path | str | None = None,
    skip_unmatched: bool | None = None,
    allow_drop: Sequence[str] | None = None,
    allow_pickle: bool = False,
    exact: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Recompute a merge and compare it with `merged`, element by element.

    Options left out come from the merged model's receipt, else from merge's defaults. An element
    may differ by one step of its dtype; with `exact` by nothing.
    """
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        made = door.path(Path(merged))
        weights, options = _recorded(made)
        options = options.given(
            dtype=dtype,
            precision=precision,
            tie=tie,
            quantized=quantized,
            qlora_base=qlora_base,
            expert_packing=expert_packing,
            alpha=alpha,
            scale=scale,
            skip_unmatched=skip_unmatched,
            allow_drop=allow_drop,
        )
        first = weight if weight is not None else next(iter(weights), 1.0)
        strengths = [Strength(Path(adapter), first)]
        for place, entry in enumerate(add, start=1):
            default = weights[place] if place < len(weights) else 1.0
            strengths.append(_strength(entry, default))
        _check_count(strengths, weights, made)
        here = door.streamed(Path(base), Disk())
        plan, _ = _planned(door, here, strengths, options, init_adapter)
        result = stack.enter_context(open_checkpoint(made))
        comparable, different = structure(plan, result)
        outlet = ComparingOutlet(comparable, tolerance=BYTES if exact else 1)
        run(plan, outlet, Machine(device, threads), progress=progress)
        different += outlet.differences({row.name: row for row in plan.rows})
    return VerifyResult(not different, len(plan.rows), tuple(different), plan.findings)


def _strength(entry: Path | str | Strength, weight: float = 1.0) -> Strength:
    return entry if isinstance(entry, Strength) else Strength(Path(entry), weight)


def _planned(
    door: Door,
    base: Path,
    strengths: Sequence[Strength],
    options: MergeOptions,
    init_adapter: Path | str | None,
) -> tuple[Plan, Checkpoint]:
    """Open everything and make the plan; `base` came through the door already.

    The first adapter may have begun as `init_adapter`.
    """
    opened = door.stack.enter_context(open_checkpoint(base, opener=door.source))
    parts = opened_parts(
        door.stack, door.path, opened, strengths, options=options, init_adapter=init_adapter
    )
    plan = plan_merge(opened, parts, options)
    return replace(plan, findings=door.named(plan.findings)), opened


def _base_of_merge(door: Door, base: Path, disk: Disk, *, whole: bool, dry_run: bool) -> Path:
    """The base to open: read in its order but where every tensor is kept for the way back."""
    if whole:
        return door.path(base)
    return door.headers(base) if dry_run else door.streamed(base, disk)


def _recorded(merged: Path) -> tuple[list[float], MergeOptions]:
    path = merged / RECEIPT
    if not path.exists():
        return [], MergeOptions()
    receipt = read_json_object(path, limit_bytes=LARGEST_RECEIPT, what="receipt")
    return options_of(receipt, str(path))


def _check_count(strengths: Sequence[Strength], weights: Sequence[float], merged: Path) -> None:
    if weights and len(weights) != len(strengths):
        message = f"merged from {len(weights)} adapters, {len(strengths)} given"
        hint = "name the others with --add, in the order of the merge"
        raise UsageError(message, code=Code.USAGE, file=str(merged / RECEIPT), hint=hint)


def _merge_result(
    output: Output, plan: Plan, done: Delivered, began: float, *, dry_run: bool = False
) -> MergeResult:
    return MergeResult(
        out=output.out,
        total=len(plan.rows),
        touched=plan.touched,
        copied=len(plan.rows) - plan.touched,
        bytes=plan.bytes,
        seconds=round(time.monotonic() - began, 3),
        device=done.outcome.device,
        findings=(*plan.findings, *done.findings),
        stats=done.outcome.stats,
        dry_run=dry_run,
        plan=plan.as_json() if dry_run else None,
        published=done.published,
    )
