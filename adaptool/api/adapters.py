"""The verbs of adapter space: adapter in, adapter out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptool.api.door import Door, Progress
from adaptool.engine.algebra import FactorAlgebra
from adaptool.engine.write import write_model
from adaptool.findings import Finding
from adaptool.layouts import decode, writable
from adaptool.model.adapter import Adapter
from adaptool.model.adapter_results import ResizeResult
from adaptool.model.encoding import Destination
from adaptool.model.options import Machine, OutputDtype
from adaptool.model.plan import Plan
from adaptool.model.reading import Reading
from adaptool.model.resize_options import ResizeOptions
from adaptool.ops.adapter_plan import adapter_plan
from adaptool.ops.encoding import encoded, single_file
from adaptool.ops.provenance import adapter_input
from adaptool.ops.resize import resized
from adaptool.store.adapter_files import AdapterFiles, open_adapter
from adaptool.store.disk import Disk
from adaptool.store.preflight import preflight


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
    alpha: float | None = None,
    scale: float | None = None,
    allow_drop: Sequence[str] = (),
    allow_pickle: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> ResizeResult:
    """Another rank for every module: the best approximation of its delta.

    Exactly one of `rank`, `energy`, `error`, `ratio` (per module), `budget` (bytes of the file)
    and `keep` (share of the parameters) decides; `out` defaults to ./NAME-resized.
    """
    options = ResizeOptions(
        rank, energy, error, ratio, budget, keep, min_rank, max_rank, OutputDtype(dtype)
    )
    source = Path(adapter)
    machine = Machine(device, threads)
    with ExitStack() as stack:
        reading = Reading(tuple(allow_drop), alpha=alpha, scale=scale)
        opened = _opened(Door(stack, allow_pickle), source, reading)
        target = Path(out) if out is not None else _beside(source, opened.files, "resized")
        made = resized(opened.adapter, options, FactorAlgebra(machine))
        written = _Writing("resize", target, machine, overwrite, dry_run, progress, disk or Disk())
        plan = written.plan(made.adapter, [opened], options.as_json(), allow_drop)
        findings = written.write(replace(plan, findings=(*made.adapter.findings, *made.findings)))
    return ResizeResult(
        out=target,
        modules=made.modules,
        relative_error=made.relative_error,
        parameters_before=_parameters(opened.adapter),
        parameters_after=_parameters(made.adapter),
        bytes=plan.bytes,
        findings=findings,
        dry_run=dry_run,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter with the files it was read from, and its weight in what is made of it."""

    files: AdapterFiles
    adapter: Adapter
    weight: float = 1.0


def _opened(door: Door, path: Path, reading: Reading, weight: float = 1.0) -> Opened:
    files = door.stack.enter_context(open_adapter(door.path(path)))
    return Opened(files, decode(files, reading), weight)


def _beside(source: Path, files: AdapterFiles, what: str) -> Path:
    """`./NAME-what`, with the suffix of a single file."""
    name = source.resolve().name
    if files.path == source or source.is_file():
        return Path(f"{Path(name).stem}-{what}{Path(name).suffix}")
    return Path(f"{name}-{what}")


def _parameters(adapter: Adapter) -> int:
    replaced = sum(item.value.elements for item in adapter.replaced)
    return sum(delta.parameters for delta in adapter.deltas) + replaced


@dataclass(frozen=True, slots=True)
class _Writing:
    """How an adapter is written; the same for every verb."""

    command: str
    out: Path
    machine: Machine
    overwrite: bool
    dry_run: bool
    progress: Callable[[int, int], None] | None
    disk: Disk

    def plan(
        self,
        adapter: Adapter,
        inputs: Sequence[Opened],
        options: Mapping[str, Any],
        allow_drop: Sequence[str] = (),
        layout: str | None = None,
        *,
        bake: bool = False,
    ) -> Plan:
        """The plan of writing `adapter`, in its own layout where that can be written."""
        single = single_file(self.out)
        target = layout or (adapter.layout if adapter.layout in writable() else "peft")
        destination = Destination(self.out.name if single else None, bake)
        body, dropped = encoded(adapter, target, destination, allow_drop)
        plan = adapter_plan(
            body,
            inputs=[adapter_input(each.files, each.adapter, each.weight) for each in inputs],
            options=options,
            decisions={"dropped": sorted({*adapter.dropped, *dropped})},
            companions=() if single else inputs[0].files.companions,
        )
        preflight(
            self.out,
            [Path(each.files.name) for each in inputs],
            overwrite=self.overwrite,
            need_bytes=plan.bytes,
            disk=self.disk,
            single_file=single,
        )
        return plan

    def write(self, plan: Plan) -> tuple[Finding, ...]:
        """Write it, unless this is a dry run; what there is to say of it."""
        if self.dry_run:
            return plan.findings
        written = write_model(
            plan,
            self.out,
            self.command,
            self.machine,
            overwrite=self.overwrite,
            progress=self.progress,
            disk=self.disk,
            single_file=single_file(self.out),
        )
        return (*plan.findings, *written.findings)
