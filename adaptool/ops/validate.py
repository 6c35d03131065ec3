"""Findings about one artifact: what a merge would refuse, all at once and without merging."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from adaptool.errors import AdaptoolError, InternalError, Interrupted, RemoteError, UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import decode, layouts
from adaptool.layouts.pipeline_families import tables_of
from adaptool.model.adapter import Adapter
from adaptool.model.options import MergeOptions
from adaptool.model.plan import Plan
from adaptool.model.reading import NOTHING_TOLD, Told
from adaptool.model.values import ValueReader
from adaptool.ops.artifact import open_artifact, require
from adaptool.ops.base_reading import names_of
from adaptool.ops.in_peft import passed_over
from adaptool.ops.merge import Part, plan_merge
from adaptool.ops.value_checks import (
    checkpoint_findings,
    nonfinite_findings,
    scans,
    untrained_findings,
)
from adaptool.runtimes import Candidate, judged, judged_checkpoint, runtime
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.checkpoint import Checkpoint, open_checkpoint
from adaptool.store.local import LocalSource
from adaptool.store.source import Opener

T = TypeVar("T")
_ORDER = tuple(Severity)


def validate_path(
    path: Path,
    *,
    base: Path | None,
    values: ValueReader | None,
    target: str | None = None,
    told: Told = NOTHING_TOLD,
    opener: Opener = LocalSource,
) -> tuple[Finding, ...]:
    """Everything worth saying about what lies at `path`, errors first.

    With `base`, whether an adapter fits it; with `values`, what the tensors hold; with `target`,
    what would become of it in that runtime. `told` is said of the adapter; `opener` opens the
    weights files. UsageError where `path` or `base` does not exist, or is no artifact at all, and
    for a runtime that is not known.
    """
    served = runtime(target) if target is not None else None
    for given in (path, base):
        if given is not None:
            require(given)
    found = _Found()
    with ExitStack() as stack:
        opened = found.attempt(lambda: _opened(stack, path, opener))
        if isinstance(opened, Checkpoint):
            _refuse_base(path, base)
            found.findings += opened.findings
            found.attempt(lambda: found.findings.extend(checkpoint_findings(opened, values)))
            if served is not None:
                found.findings += judged_checkpoint(served, opened)
        elif opened is not None:
            based = _opened_base(stack, base, opener)
            as_stored = served is not None and served.reads("gguf")
            candidate = _check_adapter(
                found, opened, *based, values=values, told=told, as_stored=as_stored
            )
            if served is not None:
                found.attempt(lambda: found.findings.extend(judged(served, candidate)))
    return tuple(sorted(found.findings, key=lambda finding: _ORDER.index(finding.severity)))


@dataclass(slots=True)
class _Found:
    """Findings so far; what a step raises becomes one of them."""

    findings: list[Finding] = field(default_factory=list)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """What `step` returns, None where it was refused."""
        try:
            return step()
        except (Interrupted, InternalError, RemoteError):
            raise
        except AdaptoolError as error:
            if isinstance(error, UsageError) and error.code is Code.CHECKPOINT_MISSING:
                raise  # neither adapter nor model: there is nothing to have findings about
            self.findings += [each.as_finding() for each in (error, *error.others)]
            return None


def _opened(stack: ExitStack, path: Path, opener: Opener) -> AdapterFiles | Checkpoint:
    """The artifact, closed with `stack`."""
    opened = open_artifact(path, opener)
    stack.callback(opened.close)
    return opened


def _refuse_base(path: Path, base: Path | None) -> None:
    if base is not None:
        message = "is a checkpoint; a base is what an adapter is checked against"
        hint = "leave --base out"
        raise UsageError(message, code=Code.USAGE, file=str(path), field="--base", hint=hint)


def _opened_base(
    stack: ExitStack, base: Path | None, opener: Opener
) -> tuple[Checkpoint | None, _Found]:
    """The base, closed with `stack`; None where there is none or it was refused."""
    found = _Found()
    if base is None:
        return None, found
    opening = found.attempt(lambda: stack.enter_context(open_checkpoint(base, opener=opener)))
    return opening, found


def _check_adapter(
    found: _Found,
    files: AdapterFiles,
    checkpoint: Checkpoint | None,
    of_base: _Found,
    *,
    values: ValueReader | None,
    told: Told,
    as_stored: bool,
) -> Candidate:
    plan = None
    reading = told.reading(base=names_of(checkpoint))
    reading = replace(reading, as_stored=as_stored and checkpoint is None)
    adapter = found.attempt(lambda: decode(files, reading))
    found.findings += of_base.findings
    if checkpoint is not None and adapter is not None:
        plan = found.attempt(lambda: _planned(checkpoint, files, adapter, told))
    if plan is not None and adapter is not None and reading.base is not None:
        found.findings += plan.findings
        found.findings += passed_over(files, adapter, reading.base)
    else:
        found.findings += files.findings if adapter is None else adapter.findings
    if values is not None:
        found.attempt(lambda: found.findings.extend(_value_findings(files, adapter, values)))
    names = reading.base
    return Candidate(
        files,
        adapter,
        _layout(files, adapter),
        names.config if names is not None else None,
        names.shapes if names is not None else {},
        _family(adapter),
    )


def _layout(files: AdapterFiles, adapter: Adapter | None) -> str | None:
    """The adapter's layout; where it could not be decoded, the one that claims its keys."""
    if adapter is not None:
        return adapter.layout
    claiming = [name for name, layout in layouts().items() if layout.sniff(files).claimed]
    return claiming[0] if len(claiming) == 1 else None


def _family(adapter: Adapter | None) -> str | None:
    """The architecture of a diffusion model's adapter; None where it is another's, or unknown."""
    tables = tables_of(adapter.architectures) if adapter is not None else ()
    (only,) = tables if len(tables) == 1 else (None,)
    return only.name if only is not None else None


def _planned(base: Checkpoint, files: AdapterFiles, adapter: Adapter, told: Told) -> Plan:
    options = MergeOptions(expert_packing=told.expert_packing, allow_drop=told.allow_drop)
    return plan_merge(base, [Part(files, adapter, 1.0)], options, identified=False)


def _value_findings(
    files: AdapterFiles, adapter: Adapter | None, values: ValueReader
) -> list[Finding]:
    seen = scans(files.tensors, values)
    found = nonfinite_findings(files.tensors, seen)
    return found + untrained_findings(adapter.deltas, seen) if adapter is not None else found
