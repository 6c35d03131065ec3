"""The base as its sidecar remembers it: headers, config, and as much of the weights as is kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from adaptool.engine.blocks import Cut, content, cuts, fits, restored
from adaptool.engine.codec import Bytes
from adaptool.errors import IntegrityError, MismatchError
from adaptool.findings import Code
from adaptool.model.plan import Document
from adaptool.store.checkpoint import CONFIG_FILE, Checkpoint, Shard
from adaptool.store.documents import parse_json_object
from adaptool.store.header import read_header
from adaptool.store.local import LocalSource
from adaptool.store.safe_names import check_relative
from adaptool.store.sidecar import (
    Block,
    Kept,
    Restored,
    Sidecar,
    Way,
    inflated,
    read_stream,
)
from adaptool.store.source import Source
from adaptool.store.tensors import TensorRef

# A tensor of the base, the merged model's in its place, and the sidecar's entry.
_Known = tuple[TensorRef, TensorRef | None, Restored]


class ShardMemory:
    """A shard of the base as a source: its header, and those tensors that need no arithmetic."""

    def __init__(self, name: str, header: bytes, size: int, sidecar: Source) -> None:
        """`size` is the whole file's; tensors are added once the header was read."""
        self.name, self.size = name, size
        self._header, self._sidecar = header, sidecar
        self._starts: list[int] = []
        self._known: list[_Known] = []

    def knows(self, tensors: Sequence[_Known]) -> None:
        """The shard's tensors, in the order of their data."""
        self._known = [known for known in tensors if known[0].length]
        self._starts = [base.offset for base, _, _ in self._known]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Bytes of the header or of one tensor.

        What has to be computed is given as it is in the merged model: a plan may compare it with
        an adapter's copy of the base, and that changes no delta. MismatchError where it cannot be.
        """
        if offset < len(self._header):  # a parser sniffs a little beyond; nothing depends on it
            part = self._header[offset : offset + buffer.nbytes]
            buffer[:] = part + bytes(buffer.nbytes - len(part))
            return
        place = bisect_right(self._starts, offset) - 1
        if place < 0:
            raise self._unknown(None)
        base, merged, kept = self._known[place]
        start = offset - base.offset
        if start + buffer.nbytes > base.length:
            raise self._unknown(base.name)
        if merged is not None and kept.way is Way.SUBTRACTED:
            if merged.dtype != base.dtype:
                raise self._unknown(base.name)
            buffer[:] = content(merged, (start, start + buffer.nbytes))
            return
        buffer[:] = self._bytes(base, merged, kept, start, start + buffer.nbytes)

    def _bytes(
        self, base: TensorRef, merged: TensorRef | None, kept: Restored, start: int, stop: int
    ) -> bytes:
        found = bytearray()
        for (block, at), cut in zip(kept.placed, cuts(base, merged), strict=True):
            first, last = cut.base
            if first < stop and last > start:
                whole = self._block(base, merged, block, at, cut)
                found += whole[max(0, start - first) : stop - first]
        return bytes(found)

    def _block(
        self, base: TensorRef, merged: TensorRef | None, block: Block, at: int, cut: Cut
    ) -> Bytes:
        stream = read_stream(self._sidecar, at, block.length, block.stream)
        theirs = content(merged, cut.merged) if merged is not None and cut.merged else b""
        found = restored(block.coding, stream, theirs, theirs, base.dtype, alike=True)
        if found is None:
            raise self._unknown(base.name)
        return found

    def _unknown(self, tensor: str | None) -> MismatchError:
        message = "the merge looked at the base's values here, which only subtraction gives"
        return MismatchError(message, code=Code.NOT_REVERSIBLE, file=self.name, tensor=tensor)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A base, as far as a merged model and its sidecar know it.

    `merged` are the merged tensors that a tensor of the base comes from, by the base's name, and
    `kept` the sidecar's entries; `documents` are its other files that the sidecar holds.
    """

    base: Checkpoint
    merged: dict[str, TensorRef]
    kept: dict[str, Restored]
    documents: tuple[Document, ...]


def remembered(sidecar: Sidecar, source: LocalSource, merged: Checkpoint) -> Remembered:
    """The base of a reversible merge.

    IntegrityError (exit 9) where sidecar and merged model do not belong together.
    """
    held = [(kept, _document(kept, source)) for kept in sidecar.documents]
    entries = {entry.name: entry for entry in sidecar.tensors}
    found = {name: merged.tensors.get(entry.source) for name, entry in entries.items()}
    sizes: dict[str, TensorRef] = {}
    shards = [
        _shard(kept.name, raw, source, entries, found=found, sizes=sizes)
        for kept, raw in held
        if kept.role == "shard"
    ]
    if sizes.keys() != entries.keys():
        raise _apart(source, "its headers and its tensors are not the same")
    by_role = {kept.role: (kept.name, raw) for kept, raw in held}
    index_file, index = by_role.get("index", (None, None))
    _, config = by_role.get("config", (None, None))
    base = Checkpoint(
        name=merged.name,
        root=merged.root,
        shards=tuple(shards),
        tensors=MappingProxyType(sizes),
        index=index,
        index_file=index_file,
        config=None
        if config is None
        else parse_json_object(config, file=CONFIG_FILE, nonfinite=True),
        config_bytes=config,
    )
    others = tuple(Document(kept.name, raw) for kept, raw in held if kept.role != "shard")
    known = {name: ref for name, ref in found.items() if ref is not None}
    return Remembered(base, known, entries, others)


def _shard(
    name: str,
    header: bytes,
    source: LocalSource,
    entries: dict[str, Restored],
    *,
    found: dict[str, TensorRef | None],
    sizes: dict[str, TensorRef],
) -> Shard:
    """A shard of the base; its tensors are entered into `sizes`."""
    memory = ShardMemory(name, header, _file_size(header, source), source)
    parsed = read_header(memory)
    known = []
    for ref in parsed.tensors.values():
        entry = entries.get(ref.name)
        beside = found.get(ref.name)
        if entry is None or not fits(entry, ref, beside):
            raise _apart(source, "is of a model of other shapes", ref.name)
        known.append((ref, beside, entry))
        sizes[ref.name] = ref
    memory.knows(known)
    return Shard(name, cast("LocalSource", memory), parsed)


def _file_size(header: bytes, source: Source) -> int:
    """Bytes of a whole safetensors file: its header says where the last tensor ends."""
    body = parse_json_object(header[8:], file=source.name)
    try:
        ends = [entry["data_offsets"][1] for name, entry in body.items() if name != "__metadata__"]
        return len(header) + max(ends, default=0)
    except (KeyError, IndexError, TypeError):
        raise _apart(source, "holds a header that is none") from None


def _document(kept: Kept, source: Source) -> bytes:
    check_relative(kept.name, file=source.name, field="file name")
    stream = read_stream(source, kept.offset, kept.length, kept.stream)
    plain = inflated(stream, kept.size)
    if plain is None:
        raise _apart(source, f"{kept.name} cannot be read")
    return plain


def _apart(source: Source, message: str, tensor: str | None = None) -> IntegrityError:
    hint = "the sidecar belongs to another merge: take the one that lay beside these weights"
    return IntegrityError(message, code=Code.INTEGRITY, file=source.name, tensor=tensor, hint=hint)
