"""What an adapter or a checkpoint is, from headers and configs; from values where asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from adaptool.errors import AdaptoolError, Interrupted, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import decode
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.inspected import Inspected, Summary
from adaptool.model.reading import NOTHING_TOLD, SCALE_HINT, Reading, Told
from adaptool.model.results import AdapterSummary, CheckpointSummary, ModuleRow
from adaptool.model.values import Scan, Spectrum, ValueReader
from adaptool.ops import ties
from adaptool.ops.artifact import open_artifact
from adaptool.ops.base_norms import base_norms
from adaptool.ops.base_reading import names_of
from adaptool.ops.drafts import drafts_of
from adaptool.ops.similarity import similarity
from adaptool.ops.value_checks import (
    checkpoint_findings,
    nonfinite_findings,
    scans,
    untrained_findings,
)
from adaptool.store.adapter_files import METADATA_KEYS, AdapterFiles
from adaptool.store.checkpoint import Checkpoint, open_checkpoint
from adaptool.store.local import LocalSource
from adaptool.store.source import Opener
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

PROVENANCE = ("peft_type", "peft_version", "task_type", "revision")


def inspect_paths(
    paths: Sequence[Path],
    *,
    values: ValueReader | None,
    base: Path | None,
    told: Told = NOTHING_TOLD,
    opener: Opener = LocalSource,
) -> Inspected:
    """Describe what lies at each path, and with `values` how alike the adapters are.

    `values` reads the weights too, `base` is compared with, `told` is said of the adapters, in the
    order of the paths; `opener` opens the weights files. A scale that nobody says stays unknown.
    Errors as in `open_artifact`, `layouts.decode` and `open_checkpoint`, of all paths together.
    """
    with ExitStack() as stack:
        checkpoint = None
        if base is not None:
            checkpoint = stack.enter_context(open_checkpoint(base, opener=opener))
        found: list[tuple[Summary, Adapter | None]] = []
        errors: list[AdaptoolError] = []
        told = replace(told, describes=True)
        for place, path in enumerate(paths):
            try:
                opened = open_artifact(path, opener)
                stack.callback(opened.close)
                reading = told.reading(place, names_of(checkpoint))
                found.append(_summary(opened, str(path), values, checkpoint, reading))
            except Interrupted:
                raise
            except AdaptoolError as error:
                errors.append(error)
        if errors:
            raise gathered(errors)
        adapters = [adapter if _is_scaled(adapter) else None for _, adapter in found]
        alike = similarity(adapters, values) if values is not None and len(paths) > 1 else None
    return Inspected(tuple(summary for summary, _ in found), alike)


def _summary(
    opened: AdapterFiles | Checkpoint,
    path: str,
    values: ValueReader | None,
    base: Checkpoint | None,
    reading: Reading,
) -> tuple[Summary, Adapter | None]:
    """The summary, and the adapter where it is one."""
    if isinstance(opened, Checkpoint):
        return _checkpoint_summary(opened, path, values), None
    adapter = decode(opened, reading)
    return _adapter_summary(opened, adapter, values, base), adapter


def _adapter_summary(
    files: AdapterFiles, adapter: Adapter, values: ValueReader | None, base: Checkpoint | None
) -> AdapterSummary:
    seen = scans(adapter.tensors, values) if values is not None else {}
    parameters = _trained(adapter)
    share, notes = _share(parameters, base) if base is not None else (None, ())
    norms: dict[str, float] = {}
    if values is not None and base is not None:
        norms, unfit = base_norms(adapter, base, values)
        notes = (*notes, *unfit)
    modules = tuple(_module_rows(adapter.deltas, seen, values, norms))
    counts = _tuner_counts(modules, adapter)
    return AdapterSummary(
        path=files.name,
        layout=adapter.layout,
        tuners=counts,
        tuner_properties={name: tuners()[name].DECLARATION.as_json() for name in counts},
        base=adapter.base,
        parameters=parameters,
        bytes=files.source.size,
        dtypes=_dtypes(adapter.tensors.values()),
        ranks=_ranks(modules),
        scaling=_scaling(modules),
        targets=dict(sorted(Counter(row.target for row in modules).items())),
        modules=modules,
        carried=tuple(_carried(item) for item in adapter.replaced),
        provenance=_provenance(adapter, files),
        share_of_base=share,
        findings=(
            *adapter.findings,
            *_unscaled(adapter, files),
            *notes,
            *nonfinite_findings(adapter.tensors, seen),
            *(untrained_findings(adapter.deltas, seen) if seen else ()),
        ),
    )


def _is_scaled(adapter: Adapter | None) -> bool:
    return adapter is not None and all(delta.terms.is_scaled for delta in adapter.deltas)


def _unscaled(adapter: Adapter, files: AdapterFiles) -> Iterable[Finding]:
    """What cannot be shown of an adapter whose file says no scale, and how it can."""
    if _is_scaled(adapter):
        return
    message = "the file carries no scale, so scaling and norms are unknown"
    yield Finding(
        Code.CONFIG_MISSING, Severity.NOTE, message, file=files.source.name, hint=SCALE_HINT
    )


def _tuner_counts(modules: Sequence[ModuleRow], adapter: Adapter) -> dict[str, int]:
    """Modules by tuner, those that come whole included where a tuner trained them so."""
    whole = {(item.tuner, item.parameter.rpartition(".")[0]) for item in adapter.replaced}
    counts = Counter(row.tuner for row in modules)
    counts.update(tuner for tuner, _ in whole if tuner)
    return dict(sorted(counts.items()))


def _module_rows(
    deltas: Iterable[Delta],
    seen: Mapping[str, Scan],
    values: ValueReader | None,
    norms: Mapping[str, float],
) -> Iterable[ModuleRow]:
    """One row for each module: its update, and what shifts its bias counted with it."""
    groups: dict[str, list[Delta]] = {}
    for delta in deltas:
        groups.setdefault(delta.module, []).append(delta)
    mains = [group[0] for group in groups.values()]
    unit = [_at_unit_scale(delta) for delta in mains]
    spectra = values.several(values.spectrum, unit) if values is not None else repeat(None)
    for group, spectrum in zip(groups.values(), spectra, strict=False):
        yield _module_row(group, seen, spectrum, norms)


def _at_unit_scale(delta: Delta) -> Delta:
    """The delta itself; under scale 1 where its own is unknown: its ranks are the same."""
    known = delta.terms.is_scaled
    return delta if known else replace(delta, terms=replace(delta.terms, scaling=1.0))


def _module_row(
    group: list[Delta],
    seen: Mapping[str, Scan],
    spectrum: Spectrum | None,
    norms: Mapping[str, float],
) -> ModuleRow:
    main = group[0]
    names = [ref.name for delta in group for ref in delta.roles.values()]
    terms = main.terms
    shape = (terms.out, terms.inner)
    return ModuleRow(
        module=main.parameter.removesuffix(".weight"),
        tuner=main.tuner,
        rank=terms.rank,
        scaling=terms.scaling if terms.is_scaled else None,
        shape=(terms.experts, *shape) if terms.experts else shape,
        parameters=sum(_trained_of(delta) for delta in group),
        saving=_saving(main),
        norm=spectrum.norm if spectrum and terms.is_scaled else None,
        effective_rank=spectrum.effective_rank if spectrum else None,
        energy=spectrum.energy if spectrum else None,
        nonfinite=sum(seen[name].nonfinite for name in names) if seen else None,
        base_norm=norms.get(main.parameter),
    )


def _saving(delta: Delta) -> float | None:
    """Elements of the weight for each of the module's own; None where no rank or size is known."""
    terms = delta.terms
    if not terms.rank or not terms.sized:
        return None
    return terms.out * terms.inner * (terms.experts or 1) / max(1, _trained_of(delta))


def _trained(adapter: Adapter) -> int:
    """Elements that training made: copies of the base, which PEFT may save along, are not."""
    replaced = (item.value.elements for item in adapter.replaced if not item.copied_base)
    own = sum(_trained_of(delta) for delta in adapter.deltas)
    return own + _in_common(adapter) + sum(replaced)


def _trained_of(delta: Delta) -> int:
    """Elements of the module's own that training made: no indices, no random projections."""
    declared = tuners()[delta.tuner].DECLARATION
    return sum(
        ref.elements
        for role, ref in delta.roles.items()
        if role not in delta.shared and declared.is_trained(role)
    )


def _in_common(adapter: Adapter) -> int:
    """Trained elements of tensors that no module has for itself, such as a bank of vectors."""
    own, shared = set(), {}
    for delta in adapter.deltas:
        declared = tuners()[delta.tuner].DECLARATION
        for role, ref in delta.roles.items():
            if role not in delta.shared:
                own.add(ref.name)
            elif declared.is_trained(role):
                shared[ref.name] = ref.elements
    return sum(elements for name, elements in shared.items() if name not in own)


def _share(parameters: int, checkpoint: Checkpoint) -> tuple[float | None, tuple[Finding, ...]]:
    """Adapter parameters over base parameters; None where the base's cannot be counted."""
    scheme = quantization_of(checkpoint.config)
    total = sum(ref.elements for ref in checkpoint.tensors.values())
    if scheme is not None:
        message = f"quantized ({scheme}): packed weights do not tell how many parameters there are"
        note = Finding(Code.BASE_QUANTIZED, Severity.NOTE, message, file=checkpoint.name)
        return None, (note,)
    return (parameters / total if total else None), ()


def _dtypes(tensors: Iterable[TensorRef]) -> dict[str, int]:
    """Number of tensors by dtype, named as in the file's header."""
    return dict(sorted(Counter(ref.dtype.name for ref in tensors).items()))


def _ranks(modules: Iterable[ModuleRow]) -> dict[str, Any]:
    counts = Counter(row.rank for row in modules if row.rank is not None)
    return {
        "min": min(counts, default=None),
        "max": max(counts, default=None),
        "histogram": {str(rank): counts[rank] for rank in sorted(counts)},
    }


def _scaling(modules: Iterable[ModuleRow]) -> dict[str, float] | None:
    scales = [row.scaling for row in modules if row.scaling is not None]
    return {"min": min(scales), "max": max(scales)} if scales else None


def _carried(item: Replaced) -> str:
    if item.rows is not None:
        kind = f"{len(item.rows)} token rows"
    elif item.copied_base:
        kind = "copy of the base"
    elif item.saved_module:
        kind = "saved module"
    else:
        kind = "bias" if item.parameter.endswith(".bias") else "tensor"
    return f"{item.parameter} ({kind})"


def _provenance(adapter: Adapter, files: AdapterFiles) -> dict[str, Any]:
    """Where it comes from, as far as config and file say; `metadata` without the config in it."""
    found = {name: adapter.config.get(name) for name in PROVENANCE}
    metadata = {
        key: text
        for key, text in sorted(files.header.metadata.items())
        if key not in METADATA_KEYS and key != "format"
    }
    return {**found, "metadata": metadata or None}


def quantization_of(config: Mapping[str, Any] | None) -> str | None:
    """The scheme that a model's config.json names, None where the weights are plain numbers."""
    for key in ("quantization_config", "quantization"):
        scheme = (config or {}).get(key)
        if isinstance(scheme, Mapping):
            named = scheme.get("quant_method", scheme.get("quantization_method", key))
            return str(named)
    return None


def _checkpoint_summary(
    checkpoint: Checkpoint, path: str, values: ValueReader | None
) -> CheckpointSummary:
    tensors = checkpoint.tensors
    shards = tuple((shard.file, shard.source.size) for shard in checkpoint.shards)
    return CheckpointSummary(
        path=path,
        tensor_count=len(tensors),
        shards=shards,
        parameters=sum(ref.elements for ref in tensors.values()),
        bytes=sum(size for _, size in shards),
        dtypes=_dtypes(tensors.values()),
        quantization=quantization_of(checkpoint.config),
        tied=_tied(checkpoint),
        architecture=architecture_of(checkpoint.config),
        findings=(*checkpoint.findings, *checkpoint_findings(checkpoint, values)),
    )


def _tied(checkpoint: Checkpoint) -> tuple[tuple[str, ...], ...]:
    files = [(name, shard.file) for shard in checkpoint.shards for name in shard.header.tensors]
    found = ties.find(drafts_of(checkpoint.tensors, files), checkpoint.config)
    return tuple(group.names for group in found.groups if len(group.stored) < len(group.names))


def architecture_of(config: Mapping[str, Any] | None) -> str | None:
    """The class that config.json names first, else its model type."""
    names = (config or {}).get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    kind = (config or {}).get("model_type")
    return kind if isinstance(kind, str) else None
