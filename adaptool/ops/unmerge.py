"""The plan of an unmerge: the merge's plan, turned round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptool.errors import IntegrityError, MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.options import MergeOptions, OutputDtype, Precision, Quantized, Strength
from adaptool.model.plan import Document, OutputFile, Plan, Row
from adaptool.ops.merge import Part, plan_merge
from adaptool.ops.provenance import adapter_input, base_input
from adaptool.ops.reversal import plainly_subtracted
from adaptool.store.adapter_files import value_digest
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.digest import sha256_of
from adaptool.store.local import LocalSource
from adaptool.store.own_files import RECEIPT, listed_outputs
from adaptool.store.safe_names import check_relative
from adaptool.store.sidecar import SIDECAR
from adaptool.store.tensors import TensorRef

# What a merge decides that subtraction does not undo.
_STRUCTURAL = ("quantized", "qlora_base", "layer_replication")


def inputs(merged: Checkpoint, parts: Sequence[Part]) -> tuple[Mapping[str, Any], ...]:
    """What the receipt lists: the merged model, and the adapters as the merge listed them."""
    listed = [base_input(merged, "merged")]
    for part in parts:
        listed.append(adapter_input(part.files, part.adapter, part.weight))
        if part.initial is not None:
            listed.append(adapter_input(*part.initial, -part.weight))
    return tuple(listed)


def older_digests(parts: Sequence[Part]) -> tuple[str | None, ...]:
    """For every adapter that `inputs` lists, what older receipts have for its config's sha256."""
    files = [
        each
        for part in parts
        for each in (part.files, part.initial[0] if part.initial is not None else None)
        if each is not None
    ]
    return tuple(None if each.config is None else value_digest(each.config) for each in files)


def check_adapters(
    given: Sequence[Mapping[str, Any]],
    recorded: object,
    file: str,
    *,
    older: Sequence[str | None],
) -> None:
    """MismatchError (exit 4) where an adapter is not the one that was merged in its place.

    `older` are its `older_digests`, which do as well.
    """
    listed = recorded if isinstance(recorded, list) else []
    merged = [
        entry for entry in listed if isinstance(entry, dict) and entry.get("role") == "adapter"
    ]
    if len(merged) != len(given):
        message = f"{len(merged)} adapters were merged, {len(given)} are given"
        hint = "name the others with --add, and the first one's beginning with --init-adapter"
        raise MismatchError(message, code=Code.ADAPTER_DIFFERS, file=file, hint=hint)
    for ours, theirs, old in zip(given, merged, older, strict=True):
        for key, what in (
            ("sha256", "its weights are"),
            ("config_sha256", "its config is"),
            ("weight", f"its weight {ours['weight']} is"),
        ):
            if ours[key] != theirs.get(key) and (key, theirs.get(key)) != ("config_sha256", old):
                message = f"{what} not that of the adapter that was merged, {theirs.get('name')!r}"
                hint = "give the adapters that the receipt lists, in its order"
                raise MismatchError(
                    message, code=Code.ADAPTER_DIFFERS, file=str(ours["name"]), hint=hint
                )


def plan_exact(
    forward: Plan,
    base: Checkpoint,
    merged: Mapping[str, TensorRef],
    stored: Mapping[str, TensorRef],
    subtracted: Mapping[str, str],
    *,
    documents: Sequence[Document],
) -> Plan:
    """The base's own files: every tensor in its seat, from the merged model or from the sidecar.

    `forward` is the plan of the merge, made again from `base`; `subtracted` names the merged
    tensors of those that are computed, by the base's names.
    """
    rows_by_name = {row.name: row for row in forward.rows}
    rows, files = [], []
    for shard in base.shards:
        files.append(OutputFile(shard.file, shard.header.raw, shard.source.size))
        for ref in shard.header.tensors.values():
            source = stored.get(ref.name) or merged[ref.name]
            seat = _seated(ref, source, shard.file)
            if ref.name in subtracted:
                seat = _taken_away(seat, rows_by_name.get(subtracted[ref.name]), source)
            rows.append(seat)
    return Plan(
        rows=tuple(rows),
        files=tuple(files),
        documents=tuple(documents),
        precision=Precision.FLOAT64,
        inputs=(),
        options={},
    )


def _seated(ref: TensorRef, source: TensorRef, file: str) -> Row:
    return Row(ref.name, ref.dtype, ref.shape, file, ref.offset, ref.length, source)


def _taken_away(seat: Row, forward: Row | None, merged: TensorRef) -> Row:
    """The row minus what the merge added."""
    if forward is None or (forward.dtype, forward.shape) != (merged.dtype, merged.shape):
        message = "the merge made again would not write this tensor"
        hint = "the adapter, or the version of adaptool, is not that of the merge"
        raise IntegrityError(message, code=Code.INTEGRITY, tensor=seat.name, hint=hint)
    pieces = tuple(replace(piece, weight=-piece.weight) for piece in forward.pieces)
    return replace(seat, pieces=pieces, fold=forward.fold)


def plan_numeric(
    merged: Checkpoint,
    parts: Sequence[Part],
    options: MergeOptions,
    decisions: Mapping[str, Any],
) -> Plan:
    """Subtraction where nothing was kept: the merge onto the merged model, at minus its weights.

    MismatchError (exit 4) where a merge is not undone by subtracting.
    """
    for name in _STRUCTURAL:
        if name in decisions:
            message = f"the merge changed more than values ({name})"
            raise _not_reversible(message, merged.name)
    kept = replace(
        options,
        dtype=OutputDtype.KEEP,
        max_shard_size=None,
        precision=Precision.FLOAT64,
        quantized=Quantized.ALL,
    )
    forward = plan_merge(merged, parts, kept)
    return replace(
        forward,
        rows=tuple(_negated(row) for row in forward.rows),
        findings=(*forward.findings, _approximate()),
        decisions={},
    )


def _negated(row: Row) -> Row:
    if row.replaced or row.blends:
        message = "the adapter brought values of its own, the base's are gone"
        raise _not_reversible(message, None, row.name)
    if not plainly_subtracted(row):
        tuner = next(piece.delta.tuner for piece in row.pieces)
        message = f"{tuner} is no sum that can be subtracted"
        raise _not_reversible(message, None, row.name)
    return replace(row, pieces=tuple(replace(piece, weight=-piece.weight) for piece in row.pieces))


def _not_reversible(message: str, file: str | None, tensor: str | None = None) -> MismatchError:
    hint = "merge with --reversible: what cannot be subtracted is then kept beside the weights"
    return MismatchError(message, code=Code.NOT_REVERSIBLE, file=file, tensor=tensor, hint=hint)


def _approximate() -> Finding:
    message = "the merge kept nothing: what rounding lost is not restored"
    hint = "merge --reversible keeps it"
    return Finding(Code.NOT_REVERSIBLE, Severity.WARNING, message, hint=hint)


def check_outputs(receipt: Mapping[str, Any], root: Path) -> None:
    """IntegrityError (exit 9) where a file has not the sha256 that --checksum noted."""
    for entry in listed_outputs(receipt):
        if "sha256" not in entry:
            continue
        name = check_relative(entry["name"], file=str(root / RECEIPT), field="outputs")
        with LocalSource(root / name) as source:
            if sha256_of(source) != entry["sha256"]:
                message = "is not what the merge wrote: its sha256 is another"
                raise IntegrityError(message, code=Code.INTEGRITY, file=source.name)


def check_weights(given: Sequence[Strength | None], weights: Sequence[float]) -> list[float]:
    """The recorded weights; MismatchError (exit 4) where one is given that is another."""
    for strength, weight in zip(given, weights, strict=True):
        if strength is not None and strength.weight != weight:
            message = f"merged at weight {weight}, given {strength.weight}"
            hint = "leave the weight out: the receipt has it"
            raise MismatchError(
                message, code=Code.ADAPTER_DIFFERS, file=str(strength.path), hint=hint
            )
    return list(weights)


def check_options(
    recorded: MergeOptions,
    file: str,
    **given: Any,  # noqa: ANN401 - see `MergeOptions.given`
) -> None:
    """MismatchError (exit 4) where an option is given that is not what the merge had."""
    options = recorded.given(**given)
    for name in given:
        ours, theirs = getattr(options, name), getattr(recorded, name)
        if ours != theirs:
            flag = f"--{name.replace('_', '-')}"
            message = f"merged with {_shown(theirs)}, given {_shown(ours)}"
            hint = f"leave {flag} out: the receipt has it"
            raise MismatchError(
                message, code=Code.ADAPTER_DIFFERS, file=file, field=flag, hint=hint
            )


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def copied_document(root: Path, name: object, digest: object) -> Document:
    """A file that the merge had copied; IntegrityError where it is another one now."""
    path = root / check_relative(str(name), file=SIDECAR, field="file name")
    with LocalSource(path) as source:
        if sha256_of(source) != digest:
            message = "is not what the merge copied: its sha256 is another"
            hint = "restore the file from where it was merged"
            raise IntegrityError(message, code=Code.INTEGRITY, file=source.name, hint=hint)
    return Document(str(name), copy_of=path)
