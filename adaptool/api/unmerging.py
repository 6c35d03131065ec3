"""The verb that takes a merge apart."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptool.api.attesting import Attesting
from adaptool.api.door import Door, Progress
from adaptool.api.output import Delivered, Output
from adaptool.engine.besides import Besides
from adaptool.engine.bounding import Bounding
from adaptool.engine.remembered import Remembered, remembered
from adaptool.engine.restoring import Restoring, check_blocks, sidecar_refs
from adaptool.errors import InputError, IntegrityError, MismatchError
from adaptool.findings import Code
from adaptool.model.keywords import reads_keywords
from adaptool.model.options import Machine, MergeOptions, Precision, Strength
from adaptool.model.plan import Document, Plan
from adaptool.model.unmerged import UnmergeResult
from adaptool.ops import unmerge as planning
from adaptool.ops.merge import Part, plan_merge
from adaptool.ops.parts import opened_parts
from adaptool.ops.verify import options_of
from adaptool.store.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from adaptool.store.disk import Disk
from adaptool.store.documents import read_json_object
from adaptool.store.local import LocalSource
from adaptool.store.own_files import LARGEST_RECEIPT, RECEIPT
from adaptool.store.safe_names import printable
from adaptool.store.sidecar import SIDECAR, Sidecar, Way, read_sidecar


@dataclass(frozen=True, slots=True)
class _Merge:
    """A merged model, and what its receipt says of how it was made."""

    root: Path
    checkpoint: Checkpoint
    receipt: Mapping[str, Any]
    strengths: Sequence[Strength]
    options: MergeOptions
    init_adapter: Path | None

    @property
    def receipt_file(self) -> str:
        """The receipt, as messages name it."""
        return printable(str(self.root / RECEIPT))

    def parts(self, door: Door, base: Checkpoint) -> list[Part]:
        """The adapters; MismatchError where they are not those that were merged."""
        parts = opened_parts(
            door.stack,
            door.path,
            base,
            self.strengths,
            options=self.options,
            init_adapter=self.init_adapter,
        )
        given = planning.inputs(self.checkpoint, parts)[1:]
        planning.check_adapters(
            given,
            self.receipt.get("inputs"),
            self.receipt_file,
            older=planning.older_digests(parts),
        )
        return parts


@dataclass(frozen=True, slots=True)
class _Undoing:
    """What is to be written, what is done besides, and how many tensors the merge had changed."""

    plan: Plan
    besides: Besides
    touched: int
    exact: bool


@reads_keywords
def unmerge(
    merged: Path | str,
    adapter: Path | str,
    out: Path | str,
    *,
    add: Sequence[Path | str | Strength] = (),
    init_adapter: Path | str | None = None,
    exact: bool = False,
    alpha: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    expert_packing: str | None = None,
    allow_drop: Sequence[str] | None = None,
    allow_pickle: bool = False,
    checksum: bool = False,
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> UnmergeResult:
    """Write to the new directory `out` the base that `merged` was made of.

    Bit for bit where the merge was reversible; else by subtracting, with a bound on the error,
    which `exact` refuses (MismatchError). Weights and options come from the merge's receipt;
    MismatchError or IntegrityError where an adapter, a file or an option that is given is not that
    of the merge.
    """
    began = time.monotonic()
    machine, used, attesting = Machine(device, threads), disk or Disk(), Attesting(checksum)
    output = Output(Path(out), "unmerge", machine, overwrite, progress, used, attesting, private)
    inputs = [Path(merged), Path(adapter), *map(_path, add)]
    inputs += [] if init_adapter is None else [Path(init_adapter)]
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        made = _opened(door, Path(merged), [adapter, *add], init_adapter)
        planning.check_options(
            made.options,
            made.receipt_file,
            alpha=alpha,
            scale=scale,
            expert_packing=expert_packing,
            allow_drop=allow_drop,
        )
        undoing = _undoing(door, made, machine, exact=exact)
        plan = undoing.plan
        output.check(plan, inputs)
        done = Delivered.nothing(device)
        if not dry_run:
            done = output.write(plan, besides=undoing.besides)
        findings = door.named((*plan.findings, *done.findings))
    return UnmergeResult(
        out=output.out,
        exact=undoing.exact,
        total=len(plan.rows),
        touched=undoing.touched,
        bytes=plan.bytes,
        bound=_bound(undoing, made.options, dry_run=dry_run),
        seconds=round(time.monotonic() - began, 3),
        findings=findings,
        dry_run=dry_run,
        plan=plan.as_json() if dry_run else None,
        published=done.published,
    )


def _path(entry: Path | str | Strength) -> Path:
    return entry.path if isinstance(entry, Strength) else Path(entry)


def _opened(
    door: Door,
    merged: Path,
    adapters: Sequence[Path | str | Strength],
    init_adapter: Path | str | None,
) -> _Merge:
    """The merged model, and the adapters at the weights that its receipt has."""
    root = door.path(merged)
    file = root / RECEIPT
    if not os.path.lexists(file):
        message = "has no receipt: the weights and options of the merge are not known"
        hint = "unmerge takes apart what adaptool merge wrote"
        raise InputError(message, code=Code.RECEIPT_INVALID, file=printable(str(root)), hint=hint)
    receipt = read_json_object(file, limit_bytes=LARGEST_RECEIPT, what="receipt")
    weights, options = options_of(receipt, printable(str(file)))
    if len(weights) != len(adapters):
        message = f"merged from {len(weights)} adapters, {len(adapters)} given"
        hint = "name the others with --add, in the order of the merge"
        raise MismatchError(
            message, code=Code.ADAPTER_DIFFERS, file=printable(str(file)), hint=hint
        )
    given = [entry if isinstance(entry, Strength) else None for entry in adapters]
    weights = planning.check_weights(given, weights)
    strengths = [
        Strength(_path(entry), weight) for entry, weight in zip(adapters, weights, strict=True)
    ]
    checkpoint = door.stack.enter_context(open_checkpoint(root))
    initial = None if init_adapter is None else Path(init_adapter)
    return _Merge(root, checkpoint, receipt, strengths, options, initial)


def _undoing(door: Door, made: _Merge, machine: Machine, *, exact: bool) -> _Undoing:
    """Exactly where the merge kept what that takes, else by subtracting, unless `exact`."""
    if (made.root / SIDECAR).exists():
        return _restoring(door, made, machine)
    if exact:
        raise _nothing_kept(made)
    return _subtracting(door, made)


def _restoring(door: Door, made: _Merge, machine: Machine) -> _Undoing:
    """Everything as the sidecar says; refused before anything is written where it does not fit."""
    source = door.stack.enter_context(LocalSource(made.root / SIDECAR))
    sidecar = read_sidecar(source)
    if sidecar.about.get("options") != made.receipt.get("options"):
        message = "is of a merge with other options than the receipt beside it"
        raise IntegrityError(message, code=Code.INTEGRITY, file=source.name)
    memory = remembered(sidecar, source, made.checkpoint)
    parts = made.parts(door, memory.base)
    check_blocks(memory, source, machine.threads)
    forward = plan_merge(memory.base, parts, made.options, identified=False)
    subtracted = {
        entry.name: entry.source for entry in sidecar.tensors if entry.way is Way.SUBTRACTED
    }
    stored = {ref.name: ref for ref in sidecar_refs(memory, source)}
    documents = _documents(memory, sidecar, made.root)
    plan = planning.plan_exact(
        forward, memory.base, memory.merged, stored, subtracted, documents=documents
    )
    touched = sum(entry.way is not Way.COPIED for entry in sidecar.tensors)
    return _Undoing(
        _recorded(plan, made, parts, exact=True), Restoring(memory, source), touched, exact=True
    )


def _documents(memory: Remembered, sidecar: Sidecar, root: Path) -> list[Document]:
    """The base's other files, config and index last."""
    copied = sidecar.about.get("copied")
    listed = copied.items() if isinstance(copied, dict) else ()
    files = [planning.copied_document(root, name, digest) for name, digest in listed]
    last = (memory.base.index_file, CONFIG_FILE)
    kept = [document for document in memory.documents if document.name not in last]
    ends = [document for document in memory.documents if document.name in last]
    files = sorted([*files, *kept], key=lambda document: document.name)
    return [*files, *sorted(ends, key=lambda document: document.name)]


def _subtracting(door: Door, made: _Merge) -> _Undoing:
    """The merge's own deltas, taken away from what it wrote."""
    planning.check_outputs(made.receipt, made.root)
    parts = made.parts(door, made.checkpoint)
    decisions = made.receipt.get("decisions")
    known = decisions if isinstance(decisions, dict) else {}
    plan = planning.plan_numeric(made.checkpoint, parts, made.options, known)
    return _Undoing(
        _recorded(plan, made, parts, exact=False), Bounding(), plan.touched, exact=False
    )


def _recorded(plan: Plan, made: _Merge, parts: Sequence[Part], *, exact: bool) -> Plan:
    """The plan with what its receipt says."""
    weights = [strength.weight for strength in made.strengths]
    return replace(
        plan,
        inputs=planning.inputs(made.checkpoint, parts),
        options={"weights": weights, "exact": exact},
    )


def _bound(undoing: _Undoing, options: MergeOptions, *, dry_run: bool) -> int | None:
    """Steps of the dtype; float32 arithmetic has an error of its own, which is not known."""
    if undoing.exact:
        return 0
    if dry_run or options.precision is Precision.FLOAT32:
        return None
    return undoing.besides.bound if isinstance(undoing.besides, Bounding) else None


def _nothing_kept(made: _Merge) -> MismatchError:
    message = "has no adaptool.unmerge: what rounding lost was not kept"
    hint = "merge with --reversible, or leave --exact out to subtract"
    return MismatchError(
        message, code=Code.NOT_REVERSIBLE, file=printable(str(made.root)), hint=hint
    )
