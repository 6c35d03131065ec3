"""How every tensor of the base comes back from a reversible merge, decided from its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.plan import Document, Plan, Row
from adaptool.model.reversal import Restoration, Reversal
from adaptool.store.checkpoint import CONFIG_FILE, Checkpoint
from adaptool.store.digest import sha256_of
from adaptool.store.local import LocalSource
from adaptool.store.safe_names import is_safe
from adaptool.store.sidecar import SIDECAR, Way
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

OPTION = "reversible"
SHARD, INDEX, CONFIG, FILE = "shard", "index", "config", "file"
# What a prediction is made in.
_COMPUTED = frozenset({"BF16", "F16", "F32"})


def reversible(plan: Plan, base: Checkpoint) -> tuple[Plan, Reversal]:
    """The plan with what it says of its sidecar, and what that sidecar keeps."""
    _check_whole(base)
    reversal = Reversal(tuple(_restorations(plan, base)), tuple(_documents(plan, base)))
    options = {**plan.options, OPTION: True}
    stored = {"tensors": len(reversal.stored), "bytes": reversal.stored_bytes}
    plan = replace(
        plan,
        options=options,
        decisions={**plan.decisions, "stored_whole": stored},
        findings=(*plan.findings, *_notes(reversal)),
    )
    return plan, replace(reversal, about=_about(plan, base))


def plainly_subtracted(row: Row) -> bool:
    """Whether subtracting the row's deltas from what was merged is its undoing."""
    return all(tuners()[piece.delta.tuner].DECLARATION.additive for piece in row.pieces)


def _notes(reversal: Reversal) -> Iterator[Finding]:
    if reversal.stored:
        count, size = len(reversal.stored), reversal.stored_bytes
        message = f"{count} tensors of the base are stored whole: {size / 1e6:.1f} MB"
        yield Finding(Code.STORED_WHOLE, Severity.NOTE, message, file=SIDECAR)


def _check_whole(base: Checkpoint) -> None:
    """MismatchError where a shard holds bytes that belong to no tensor."""
    for shard in base.shards:
        known = sum(ref.length for ref in shard.header.tensors.values()) + len(shard.header.raw)
        if known != shard.source.size:
            message = f"holds {shard.source.size} bytes, its tensors and header are {known}"
            raise MismatchError(
                message, code=Code.UNSUPPORTED, file=shard.source.name, field="--reversible"
            )


def _restorations(plan: Plan, base: Checkpoint) -> Iterator[Restoration]:
    """One for every tensor of the base, shard by shard, in the order of their data."""
    named = {row.name: row for row in plan.rows}
    made_of: dict[tuple[int, int, str], list[Row]] = {}
    for row in plan.rows:
        made_of.setdefault(_place(row.source), []).append(row)
    sources = {id(shard.source) for shard in base.shards}
    for shard in base.shards:
        for ref in shard.header.tensors.values():
            rows = made_of.get(_place(ref), [])
            yield _restoration(ref, rows, named.get(ref.name), sources)


def _place(ref: TensorRef) -> tuple[int, int, str]:
    return id(ref.source), ref.offset, ref.name


def _restoration(
    ref: TensorRef, rows: list[Row], named: Row | None, sources: set[int]
) -> Restoration:
    """`rows` are made of this very tensor, `named` has its name; `sources` are the base's."""
    copy = next((row for row in rows if row.is_copy), None)
    if copy is not None:
        return Restoration(ref, Way.COPIED, copy)
    own = next((row for row in rows if _is_own(row)), None)
    if own is not None and _is_predicted(ref, own, sources):
        return Restoration(ref, Way.SUBTRACTED, own)
    beside = own or (named if named is not None and named.recoded is not None else None)
    if beside is not None and (beside.dtype, beside.shape) == (ref.dtype, ref.shape):
        return Restoration(ref, Way.BESIDE, beside)
    return Restoration(ref, Way.STORED, None)


def _is_own(row: Row) -> bool:
    """Whether most of what it holds is the base's, changed."""
    return row.recoded is None and not any(blend.is_whole for blend in row.blends)


def _is_predicted(ref: TensorRef, row: Row, sources: set[int]) -> bool:
    """Whether the adapters alone tell what was added to it, and it is computed with."""
    read = {id(role.source) for piece in row.pieces for role in piece.delta.roles.values()}
    if read & sources:
        return False
    if not {ref.dtype.name, row.dtype.name} <= _COMPUTED or not plainly_subtracted(row):
        return False
    return bool(row.pieces) or row.dtype != ref.dtype


def _documents(plan: Plan, base: Checkpoint) -> Iterator[tuple[str, Document]]:
    for shard in base.shards:
        yield SHARD, Document(_file_name(shard.file), shard.header.raw)
    if base.index is not None and base.index_file is not None:
        yield INDEX, Document(base.index_file, base.index)
    if base.config_bytes is not None:
        yield CONFIG, Document(CONFIG_FILE, base.config_bytes)
    for name in base.companions:
        if name not in _copied(plan, base):
            yield FILE, Document(name, copy_of=base.root / name)


def _file_name(file: str) -> str:
    """As the seating names it: a lone file's name may be none to hand on."""
    return file if is_safe(file) else "model.safetensors"


def _copied(plan: Plan, base: Checkpoint) -> dict[str, Path]:
    """The base's other files that the output holds as they are."""
    return {
        document.name: document.copy_of
        for document in plan.documents
        if document.copy_of is not None and document.copy_of == base.root / document.name
    }


def _about(plan: Plan, base: Checkpoint) -> Mapping[str, Any]:
    copied = {}
    for name, path in _copied(plan, base).items():
        with LocalSource(path) as source:
            copied[name] = sha256_of(source)
    adapters = [dict(entry) for entry in plan.inputs if entry.get("role") == "adapter"]
    return {"options": dict(plan.options), "adapters": adapters, "copied": copied}
