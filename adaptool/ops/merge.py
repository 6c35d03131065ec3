"""The plan of a merge: adapters onto a base, decided from headers and configs alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adaptool.dtypes import BY_TORCH_NAME
from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code, Finding
from adaptool.layouts.peft_review import absent_targets, unselected
from adaptool.model.adapter import Adapter, Form
from adaptool.model.options import MergeOptions, OutputDtype, QloraBase
from adaptool.model.plan import LEAST_RETAINED, Document, Plan
from adaptool.names.families import model_types
from adaptool.names.renames import module_names
from adaptool.ops import qlora, quantized, replication, ties, vocabulary
from adaptool.ops.config_edits import classifier_edits, dtype_edits, edited
from adaptool.ops.contributions import Contribution, Permissions
from adaptool.ops.drafts import Drafts, drafts_of
from adaptool.ops.provenance import inputs_of, recorded_options
from adaptool.ops.seating import Seating, seat
from adaptool.ops.tied_adapter import spread, spread_deltas
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.checkpoint import Checkpoint
from adaptool.tuners import tuners

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter of a merge: its opened files, what they decode to, and its weight.

    `initial` is the adapter before training, for initialisations that changed the base.
    """

    files: AdapterFiles
    adapter: Adapter
    weight: float
    initial: tuple[AdapterFiles, Adapter] | None = None


@dataclass(slots=True)
class _Making:
    """What builds up while a plan is made."""

    drafts: Drafts
    edits: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    decisions: dict[str, Any] = field(default_factory=dict)
    ties: ties.Ties = field(default_factory=ties.Ties)


def plan_merge(
    base: Checkpoint, parts: Sequence[Part], options: MergeOptions, *, identified: bool = True
) -> Plan:
    """The plan of merging `parts` into `base`.

    Without `identified` no input is digested: the plan is not to be carried out.

    MismatchError (exit 4) where an adapter does not fit the base, carrying every other misfit.
    """
    drafts, opened = quantized.open_up(_base_drafts(base), base)
    making = _Making(drafts)
    making.findings += base.findings
    active = [(place, part) for place, part in enumerate(parts) if part.weight != 0.0]
    dequantized = options.qlora_base is QloraBase.DEQUANTIZED
    own = bool(active) and all(qlora.is_loftq(part.adapter) for _, part in active)
    if dequantized and not own:
        _dequantize(making, quantized=bool(opened.packed), own=own)
    for part in parts:
        making.findings += part.adapter.findings
        making.findings += qlora.notes(
            part.adapter, quantized=bool(opened.packed), dequantized=dequantized
        )
    _replicate(making, base, active)
    making.ties = ties.find(making.drafts, base.config)
    ties.add_absent(making.drafts, making.ties)
    for place, part in active:
        _check_initial(part, dequantized=dequantized)
        _contribute_whole(making, base, place, part, options)
    if dequantized and own:
        _dequantize(making, quantized=bool(opened.packed), own=own)
    _settle_ties(making, options)
    making.drafts, closed = quantized.close_up(making.drafts, opened, base, options.quantized)
    if closed is not None:
        making.edits[quantized.FIELD] = closed.config
        making.findings += closed.findings
        making.decisions["quantized"] = dict(closed.decision)
    making.edits |= vocabulary.follow(making.drafts, making.ties, base.config)
    _dtypes(making, base, options)
    seating = seat(making.drafts, base, options.max_shard_size)
    return Plan(
        rows=seating.rows,
        files=seating.files,
        documents=_documents(making, base, active, seating),
        precision=options.precision,
        findings=tuple(making.findings),
        decisions=making.decisions,
        inputs=_identities(base, parts) if identified else (),
        options=recorded_options([part.weight for part in parts], options),
        least_retained=None if options.allow_lossy else LEAST_RETAINED,
    )


def _identities(base: Checkpoint, parts: Sequence[Part]) -> tuple[Mapping[str, Any], ...]:
    return inputs_of(base, [adapter for part in parts for adapter in _inputs(part)])


def _inputs(part: Part) -> list[tuple[AdapterFiles, Adapter, float]]:
    """What the receipt lists for one adapter: itself, and the one it began as."""
    listed = [(part.files, part.adapter, part.weight)]
    if part.initial is not None:
        listed.append((*part.initial, -part.weight))
    return listed


def _base_drafts(base: Checkpoint) -> Drafts:
    files = [(name, shard.file) for shard in base.shards for name in shard.header.tensors]
    return drafts_of(base.tensors, files)


def _replicate(making: _Making, base: Checkpoint, active: Sequence[tuple[int, Part]]) -> None:
    wanted = {part.adapter.layer_replication for _, part in active}
    if len(wanted) > 1:
        message = "the adapters replicate the base's layers differently"
        raise MismatchError(message, code=Code.UNSUPPORTED, field="layer_replication")
    ranges = next(iter(wanted), ())
    if ranges:
        making.drafts = replication.replicated(making.drafts, ranges)
        making.edits |= replication.config_edits(base.config or {}, ranges)
        making.decisions["layer_replication"] = [list(pair) for pair in ranges]


def _dequantize(making: _Making, *, quantized: bool, own: bool) -> None:
    """What training saw of the base; `own`: LoftQ quantized the adapter's own modules alone."""
    drafts = making.drafts.values()
    chosen = [draft for draft in drafts if (draft.pieces if own else qlora.is_linear(draft))]
    qlora.on_trained_weights(chosen, quantized=quantized, loftq=own)
    making.decisions["qlora_base"] = {"mode": "dequantized", "weights": len(chosen)}
    shared = {name for group in making.ties.groups for name in group.names}
    for draft in chosen if own else ():
        if draft.name in shared:
            message = "LoftQ rounded this tensor under every name that it has"
            raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=draft.name)


def _contribute_whole(
    making: _Making, base: Checkpoint, place: int, part: Part, options: MergeOptions
) -> None:
    """An adapter, and what it began as taken away, under every name that the base's tensor has."""
    if part.initial is None:
        _contribute(making, base, place, part, options)
        return
    _contribute(making, base, place, _plain(part), options)
    initial = _subtracted(part, *part.initial)
    kinds = model_types(base.config)
    taken = spread_deltas(initial.adapter, making.ties, making.drafts, kinds)
    _contribute(making, base, place, replace(initial, adapter=taken), options)


def _contribute(
    making: _Making, base: Checkpoint, place: int, part: Part, options: MergeOptions
) -> None:
    permissions = Permissions(options.skip_unmatched, options.allow_drop)
    _check_targets(part, base, permissions)
    adapter = spread(part.adapter, making.ties, making.drafts, model_types(base.config))
    contribution = Contribution(
        place,
        adapter,
        part.weight,
        making.drafts,
        config=base.config,
        permissions=permissions,
    )
    ledger = contribution.add()
    making.edits |= classifier_edits(base.config or {}, part.adapter)
    making.findings += ledger.findings
    dropped = [*part.adapter.dropped, *ledger.dropped, *ledger.unused]
    for name, entries in (("skipped", ledger.skipped), ("dropped", dropped)):
        if entries:
            making.decisions.setdefault(name, []).extend(sorted(set(entries)))


def _check_initial(part: Part, *, dequantized: bool) -> None:
    """MismatchError where the adapter's base was changed before training and nobody says how."""
    init = part.adapter.changed_base
    if init is not None and init.startswith("loftq"):
        qlora.check_loftq(part.adapter, dequantized=dequantized, subtracted=bool(part.initial))
        return
    recomputed = all(
        tuners()[delta.tuner].DECLARATION.init or delta.terms.form is Form.EMBEDDING
        for delta in part.adapter.deltas
    )
    if init is None or part.initial is not None or recomputed:
        return
    message = f"{init!r} changed the base before training; adding the delta would be wrong"
    raise MismatchError(
        message,
        code=Code.INIT_CHANGED_BASE,
        file=part.files.config_file,
        field="init_lora_weights",
        hint="merge with --init-adapter DIR: the adapter as it was before training",
    )


def _subtracted(part: Part, files: AdapterFiles, initial: Adapter) -> Part:
    """The initial adapter's deltas, taken away: training began at W - s B0 A0."""
    trained = {delta.parameter for delta in part.adapter.deltas}
    begun = {delta.parameter for delta in initial.deltas}
    if trained != begun:
        only = sorted(trained ^ begun)
        message = f"{len(only)} modules stand in one of the two adapters only, such as {only[0]}"
        raise MismatchError(
            message, code=Code.MODULE_NOT_IN_BASE, file=files.name, field="--init-adapter"
        )
    return _plain(Part(files, replace(initial, replaced=()), -part.weight))


def _plain(part: Part) -> Part:
    """The part with its deltas added as they are: the initial adapter says what to take away."""
    deltas = tuple(
        replace(delta, tuner="lora") if tuners()[delta.tuner].DECLARATION.init else delta
        for delta in part.adapter.deltas
    )
    return replace(part, adapter=replace(part.adapter, deltas=deltas))


def _check_targets(part: Part, base: Checkpoint, permissions: Permissions) -> None:
    strangers = unselected(part.adapter.config, part.adapter.deltas)
    if strangers and part.adapter.layout == "peft":
        message = f"{len(strangers)} modules have tensors, but the config does not select them, so "
        raise InputError(
            message + "PEFT leaves them out",
            code=Code.TARGETS_FEWER_THAN_TENSORS,
            file=part.files.config_file,
            tensor=strangers[0].module,
            field="target_modules",
            hint="name them in target_modules; merge --allow-drop PATTERN leaves them out too",
        )
    absent = absent_targets(part.adapter, _modules(base))
    if absent and not permissions.skip_unmatched:
        message = f"names {', '.join(map(repr, absent[:3]))}, which the base has, but no tensor "
        message += "belongs to it"
        raise MismatchError(
            message,
            code=Code.TARGETS_ABSENT,
            file=part.files.config_file,
            field="target_modules",
            hint="the file is incomplete, or the name is wrong: merge --skip-unmatched goes on",
        )


def _modules(base: Checkpoint) -> Iterator[str]:
    """Every module of the base with a weight, as transformers names it."""
    kinds = model_types(base.config)
    for tensor in base.tensors:
        if tensor.endswith(".weight"):
            names = module_names(kinds, tensor)
            yield from (
                name.rpartition(".")[0] for name in names if name != tensor or names[0] == tensor
            )


def _settle_ties(making: _Making, options: MergeOptions) -> None:
    decided = ties.settle(making.drafts, making.ties, options.tie)
    making.edits |= decided.config
    making.findings += decided.findings
    if decided.unused:
        making.decisions.setdefault("dropped", []).extend(decided.unused)
    if decided.decision is not None:
        making.decisions["ties"] = decided.decision


def _dtypes(making: _Making, base: Checkpoint, options: MergeOptions) -> None:
    if options.dtype is OutputDtype.KEEP:
        return
    wanted = BY_TORCH_NAME[str(options.dtype)]
    for draft in making.drafts.values():
        if draft.dtype.floating and draft.dtype.bits >= 16 and not draft.stored:
            draft.dtype = wanted
    making.edits |= dtype_edits(base.config or {}, str(options.dtype))


def _documents(
    making: _Making, base: Checkpoint, active: Sequence[tuple[int, Part]], seating: Seating
) -> tuple[Document, ...]:
    """The other files, config and index last: what loaders look for first comes last."""
    copies = {name: base.root / name for name in base.companions}
    for _, part in active:
        copies |= {path.name: path for path in part.files.companions}
    documents = [Document(name, copy_of=path) for name, path in sorted(copies.items())]
    if base.config_bytes is not None and base.config is not None:
        content = edited(base.config, base.config_bytes, making.edits)
        documents.append(Document(CONFIG, content))
        if content != base.config_bytes:
            making.decisions["config"] = dict(sorted(making.edits.items()))
    elif making.edits:
        message = f"needs {', '.join(sorted(making.edits))} changed, and there is no config.json"
        raise InputError(message, code=Code.CONFIG_MISSING, file=base.name)
    if seating.index is not None and seating.index_file is not None:
        documents.append(Document(seating.index_file, seating.index))
    return tuple(documents)
