"""Seats: which file and offset each output tensor gets, and the headers and index that say so.

The output keeps the base's shards, header order and, where nothing moves, the header's very bytes.
New tensors go to the end of the last shard, sorted by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptool.model.plan import OutputFile, Row
from adaptool.ops.drafts import Draft, Drafts
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.documents import parse_json_object
from adaptool.store.header import encode_header, tensor_bytes
from adaptool.store.safe_names import is_safe

STEMS = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True, slots=True)
class Seating:
    """Rows with their seats, the files they lie in, and the index (None: a single file)."""

    rows: tuple[Row, ...]
    files: tuple[OutputFile, ...]
    index_file: str | None
    index: bytes | None


def seat(drafts: Drafts, base: Checkpoint, max_shard_size: int | None) -> Seating:
    """Give every draft its place."""
    groups = (
        _as_in_base(drafts, base) if max_shard_size is None else _cut(drafts, base, max_shard_size)
    )
    metadata = base.shards[0].header.metadata if base.shards else {}
    headers = {shard.file: shard.header for shard in base.shards}
    rows: list[Row] = []
    files: list[OutputFile] = []
    for file, members in groups:
        known = headers.get(file)
        entries = [(draft.name, draft.dtype, draft.shape) for draft in members]
        raw = known.raw if known is not None and max_shard_size is None else None
        if raw is None or entries != [
            (ref.name, ref.dtype, ref.shape) for ref in (known.tensors.values() if known else ())
        ]:
            raw = encode_header(entries, dict(known.metadata if known else metadata) or None)
        name = _file_name(file, base)
        seated = _rows(name, members, len(raw))
        rows += seated
        files.append(OutputFile(name, raw, len(raw) + sum(row.length for row in seated)))
    index_file, index = _index(rows, [file.name for file in files], base)
    return Seating(tuple(rows), tuple(files), index_file, index)


def _file_name(file: str, base: Checkpoint) -> str:
    """The base's own name; the usual one where a lone file's is no name to hand on."""
    return file if is_safe(file) else f"{_stem(base)}.safetensors"


def _rows(file: str, members: Sequence[Draft], start: int) -> list[Row]:
    rows = []
    for draft in members:
        length = tensor_bytes(draft.dtype, draft.shape)
        rows.append(
            Row(
                name=draft.name,
                dtype=draft.dtype,
                shape=draft.shape,
                file=file,
                offset=start,
                length=length,
                source=draft.source,
                pieces=tuple(draft.pieces),
                blends=tuple(draft.blends),
                fold=draft.fold,
                replaced=draft.replaced_by is not None,
                recoded=draft.recoded,
            )
        )
        start += length
    return rows


def _as_in_base(drafts: Drafts, base: Checkpoint) -> list[tuple[str, list[Draft]]]:
    groups: dict[str, list[Draft]] = {shard.file: [] for shard in base.shards}
    new = sorted((draft for draft in drafts.values() if draft.file is None), key=_by_name)
    for draft in drafts.values():
        if draft.file is not None:
            groups[draft.file].append(draft)
    groups[base.shards[-1].file] += new
    return [(file, members) for file, members in groups.items() if members]


def _by_name(draft: Draft) -> str:
    return draft.name


def _cut(drafts: Drafts, base: Checkpoint, most: int) -> list[tuple[str, list[Draft]]]:
    """Greedy shards of at most `most` bytes of tensors, in the base's order.

    A larger tensor gets a shard of its own, as in transformers.
    """
    kept = [draft for draft in drafts.values() if draft.file is not None]
    new = sorted((draft for draft in drafts.values() if draft.file is None), key=_by_name)
    shards: list[list[Draft]] = []
    room = 0
    for draft in [*kept, *new]:
        size = tensor_bytes(draft.dtype, draft.shape)
        if not shards or size > room:
            shards.append([])
            room = most
        shards[-1].append(draft)
        room -= size
    stem = _stem(base)
    if len(shards) == 1:
        return [(f"{stem}.safetensors", shards[0])]
    count = len(shards)
    return [
        (f"{stem}-{place:05d}-of-{count:05d}.safetensors", members)
        for place, members in enumerate(shards, start=1)
    ]


def _stem(base: Checkpoint) -> str:
    first = base.shards[0].file.rpartition("/")[2]
    return next((stem for stem in STEMS if first.startswith(stem)), "model")


def _index(
    rows: Sequence[Row], files: Sequence[str], base: Checkpoint
) -> tuple[str | None, bytes | None]:
    """The index: the base's bytes where nothing in it changes."""
    if len(files) == 1 and base.index_file is None:
        return None, None
    weight_map = {row.name: row.file for row in rows}
    old = (
        parse_json_object(base.index, file=base.index_file or "index")
        if base.index is not None
        else {}
    )
    if old.get("weight_map") == weight_map and _is_right(old.get("metadata"), rows, base):
        return base.index_file, base.index
    if len(files) == 1 and files[0].rpartition("/")[2] in {f"{stem}.safetensors" for stem in STEMS}:
        return None, None
    name = base.index_file or f"{_stem(base)}.safetensors.index.json"
    body = {
        "metadata": _index_metadata(old.get("metadata"), rows),
        "weight_map": dict(sorted(weight_map.items())),
    }
    return name, json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _is_right(metadata: object, rows: Sequence[Row], base: Checkpoint) -> bool:
    """Whether the base's index says what the output holds; a wrong size in it is not handed on."""
    sizes = {row.name: row.length for row in rows}
    if not isinstance(metadata, Mapping):
        return False
    same = sizes == {name: ref.length for name, ref in base.tensors.items()}
    return same and metadata.get("total_size") in (None, sum(sizes.values()))


def _index_metadata(old: object, rows: Sequence[Row]) -> Mapping[str, Any]:
    metadata = dict(old) if isinstance(old, Mapping) else {}
    metadata["total_size"] = sum(row.length for row in rows)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(row.source.elements for row in rows)
    return metadata
