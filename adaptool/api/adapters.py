"""The verbs of adapter space: adapter in, adapter out."""

from __future__ import annotations

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
from adaptool.model.adapter import Adapter
from adaptool.model.adapter_results import ConvertResult, ResizeResult
from adaptool.model.convert_options import ConvertOptions
from adaptool.model.keywords import reads_keywords
from adaptool.model.options import Machine, OutputDtype, chosen
from adaptool.model.reading import Told
from adaptool.model.resize_options import ResizeOptions
from adaptool.ops.convert import Converted, converted
from adaptool.ops.encoding import kept_of
from adaptool.ops.identity import settled, single_expert_notes
from adaptool.ops.resize import resized
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.disk import Disk


@reads_keywords
def resize(
    adapter: Path | str,
    out: Path | str | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    ratio: float | None = None,
    budget: int | None = None,
    keep: float | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    dtype: str = "keep",
    expert_packing: str = "peft",
    base: Path | str | None = None,
    alpha: float | None = None,
    scale: float | None = None,
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
) -> ResizeResult:
    """Another rank for every module: the best approximation of its delta.

    Exactly one of `rank`, `energy`, `error`, `ratio` (per module), `budget` (bytes of the file)
    and `keep` (share of the parameters) decides; `out` defaults to ./NAME-resized. With `base`
    the errors of DoRA modules are of m (W + BA) / |W + BA|; the result is the same.
    """
    options = ResizeOptions(
        rank,
        energy,
        error,
        ratio,
        budget,
        keep,
        min_rank,
        max_rank,
        chosen(OutputDtype, dtype, "--dtype"),
    )
    told = _told(alpha, scale, allow_drop, expert_packing)
    machine = Machine(device, threads)
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        beside = OnBase.opened(door, base, machine)
        reading = told.reading(base=beside.names)
        read = Opened.at(door, Path(adapter), reading)
        target = Path(out) if out is not None else _beside(read.files, "resized")
        made = resized(read.adapter, options, FactorAlgebra(machine), beside.based)
        attesting = Attesting.of(checksum=checksum, provenance=provenance, bom=bom)
        output = Output(
            target, "resize", machine, overwrite, progress, disk or Disk(), attesting, private
        )
        writing = Writing.to(output, dry_run=dry_run)
        given = beside.sources([read], decides=False)
        plan = writing.plan(made.adapter, given, options.as_json(), allow_drop, base=beside.names)
        notes = (*made.adapter.findings, *made.findings)
        done = writing.write(replace(plan, findings=notes))
    return ResizeResult(
        out=target,
        modules=made.modules,
        relative_error=made.relative_error,
        parameters_before=_parameters(read.adapter),
        parameters_after=_parameters(kept_of(made.adapter, plan)),
        bytes=plan.bytes,
        findings=door.named(done.findings),
        dry_run=dry_run,
        published=done.published,
    )


@reads_keywords
def convert(
    adapter: Path | str,
    out: Path | str,
    *,
    to: str,
    as_: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    base: Path | str | None = None,
    bake_scale: bool = False,
    init_adapter: Path | str | None = None,
    expert_packing: str = "peft",
    alpha: float | None = None,
    scale: float | None = None,
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
) -> ConvertResult:
    """The same adapter in another layout; `as_="lora"` brings other kinds to LoRA form first.

    `to="lora"` is short for `to="peft", as_="lora"`. `base` lends its names where a file's are not
    enough, and its weights only where LoRA factors are made of a delta that is no product of any
    (DoRA), for which a `rank` or an `energy` is needed. `init_adapter` is the adapter before
    training, where its initialisation changed the base.
    """
    options = ConvertOptions.of(to, as_, rank, energy, bake=bake_scale)
    told = _told(alpha, scale, allow_drop, expert_packing)
    target, machine = Path(out), Machine(device, threads)
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        beside = OnBase.opened(door, base, machine, weights=options.rank is not None)
        reading = told.reading(base=beside.names)
        inputs = [Opened.at(door, Path(adapter), reading)]
        if init_adapter is not None:
            inputs.append(Opened.at(door, Path(init_adapter), reading, -1.0))
        # PEFT's keys are the names of the library's modules, which the base's lead to.
        named = reading.base if options.to == "peft" else None
        read = settled([each.adapter for each in inputs], named)
        first, initial = read[0], read[1] if init_adapter is not None else None
        doubts = single_expert_notes(first) if options.to == "peft" and named is None else ()
        algebra = FactorAlgebra(machine)
        made = converted(first, options, algebra, initial=initial, based=beside.based)
        attesting = Attesting.of(checksum=checksum, provenance=provenance, bom=bom)
        output = Output(
            target, "convert", machine, overwrite, progress, disk or Disk(), attesting, private
        )
        writing = Writing.to(output, dry_run=dry_run)
        plan = writing.plan(
            made.adapter,
            beside.sources(inputs, decides=made.through_base),
            options.as_json(),
            allow_drop,
            options.to,
            bake=bake_scale,
            base=reading.base,
        )
        notes = (*first.findings, *doubts, *made.findings, *plan.findings)
        done = writing.write(replace(plan, findings=notes))
    return ConvertResult(
        out=target,
        source=first.layout,
        target=options.to,
        module_count=plan.decisions["modules"],
        carried=tuple(item.parameter for item in kept_of(made.adapter, plan).replaced),
        bytes=plan.bytes,
        relative_error=_error(made, beside, dry_run=dry_run),
        findings=door.named(done.findings),
        dry_run=dry_run,
        published=done.published,
    )


def _told(
    alpha: float | None, scale: float | None, allow_drop: Sequence[str], expert_packing: str
) -> Told:
    """What is said of the one adapter."""
    alphas, scales = (() if each is None else (each,) for each in (alpha, scale))
    return Told.of(alphas, scales, allow_drop, expert_packing)


def _error(made: Converted, beside: OnBase, *, dry_run: bool) -> float | None:
    """Of all made factors; what is taken through a base is known only once it is written."""
    if made.measured is None or (made.through_base and dry_run):
        return None
    return beside.measured(made.measured).relative


def _beside(files: AdapterFiles, what: str) -> Path:
    """`./NAME-what`, with the suffix of a single file; NAME is what lies there is called."""
    opened = Path(files.name)
    name = opened.resolve().name
    if opened.is_file():
        return Path(f"{Path(name).stem}-{what}{Path(name).suffix}")
    return Path(f"{name}-{what}")


def _parameters(adapter: Adapter) -> int:
    replaced = sum(item.value.elements for item in adapter.replaced)
    return sum(delta.parameters for delta in adapter.deltas) + replaced
