"""How the verbs of adapter space open adapters and write one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from adaptool.api.door import Door
from adaptool.api.output import Delivered, Output
from adaptool.layouts import decode, writable
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Destination
from adaptool.model.plan import Plan
from adaptool.model.reading import BaseNames, Reading
from adaptool.ops.adapter_plan import adapter_plan
from adaptool.ops.encoding import encoded
from adaptool.ops.provenance import adapter_input
from adaptool.store.adapter_files import AdapterFiles, open_adapter


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter with the files it was read from, and its weight in what is made of it."""

    files: AdapterFiles
    adapter: Adapter
    weight: float = 1.0

    @classmethod
    def at(cls, door: Door, path: Path, reading: Reading, weight: float = 1.0) -> Self:
        """Open and decode the adapter at `path`; it is closed with the door's stack."""
        files = door.stack.enter_context(open_adapter(door.path(path)))
        return cls(files, decode(files, reading), weight)


@dataclass(frozen=True, slots=True)
class Sources:
    """What an adapter is made of: as receipts list it, where it lies, what is copied along."""

    entries: tuple[Mapping[str, Any], ...]
    paths: tuple[Path, ...]
    companions: tuple[Path, ...] = ()

    @classmethod
    def of(cls, inputs: Sequence[Opened]) -> Self:
        """Adapters; the first one's tokenizer files go along."""
        return cls(
            tuple(adapter_input(each.files, each.adapter, each.weight) for each in inputs),
            tuple(Path(each.files.name) for each in inputs),
            inputs[0].files.companions,
        )


@dataclass(frozen=True, slots=True)
class Writing:
    """How an adapter is written to an OUT, if at all; the same for every verb."""

    output: Output
    dry_run: bool

    @classmethod
    def to(cls, output: Output, *, dry_run: bool) -> Self:
        """To this OUT, which may be a single file: an adapter's weights stand alone."""
        return cls(replace(output, may_be_file=True), dry_run)

    def plan(
        self,
        adapter: Adapter,
        sources: Sources,
        options: Mapping[str, Any],
        allow_drop: Sequence[str] = (),
        layout: str | None = None,
        *,
        bake: bool = False,
        base: BaseNames | None = None,
    ) -> Plan:
        """The plan of writing `adapter`, in its own layout where that can be written."""
        name = self.output.file_name
        target = layout or (adapter.layout if adapter.layout in writable() else "peft")
        destination = Destination(name, bake, base)
        body, kept, dropped = encoded(adapter, target, destination, allow_drop)
        plan = adapter_plan(
            body,
            inputs=sources.entries,
            options=options,
            decisions={
                "dropped": sorted({*adapter.dropped, *dropped}),
                "modules": len({delta.module for delta in kept.deltas}),
            },
            companions=() if name is not None else sources.companions,
        )
        self.output.check(plan, sources.paths)
        return plan

    def write(self, plan: Plan) -> Delivered:
        """Write it, unless this is a dry run; what there is to say of it."""
        if self.dry_run:
            return Delivered.nothing(self.output.machine.device, plan.findings)
        done = self.output.write(plan)
        return replace(done, findings=(*plan.findings, *done.findings))
