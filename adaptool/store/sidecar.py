"""The sidecar of a reversible merge: what the merged weights do not say of the base's.

    8 bytes   magic
    8 bytes   length of the header, little-endian
    32 bytes  sha256 of the header
    header    JSON, deflated
    streams   of the documents, then of the tensors' blocks, one behind the other

A tensor is cut into blocks of 4 MiB of the merged tensor's bytes; each block's stream stands
alone and has three digests: of the merged bytes, of the base's, and of the stream.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, NoReturn, TypeVar

from adaptool.errors import InputError, IntegrityError, MismatchError
from adaptool.findings import Code
from adaptool.store.source import Source

SIDECAR = "adaptool.unmerge"
MAGIC = b"ADUNMRG1"
VERSION = 1
BLOCK_BYTES = 4 * 1024 * 1024
LARGEST_HEADER = 1 << 30
_START = 48
_HEX = 32

T = TypeVar("T")


class Way(StrEnum):
    """How a tensor of the base comes back."""

    COPIED = "copied"
    SUBTRACTED = "subtracted"
    BESIDE = "beside"
    STORED = "stored"


class Coding(IntEnum):
    """What a block's stream holds.

    NOTHING: the prediction is right. SPARSE: corrections of a prediction. XOR: the difference to
    the merged bytes, deflated. DEFLATED, RAW: the base's bytes.
    """

    NOTHING = 0
    SPARSE = 1
    XOR = 2
    DEFLATED = 3
    RAW = 4


@dataclass(frozen=True, slots=True)
class Block:
    """One block's stream and its digests; `merged` is empty where nothing merged is read."""

    coding: Coding
    length: int
    merged: str
    base: str
    stream: str

    def as_json(self) -> list[Any]:
        """The block in the header."""
        return [int(self.coding), self.length, self.merged, self.base, self.stream]


@dataclass(frozen=True, slots=True)
class Restored:
    """One tensor of the base; `source` names the merged tensor, "" where it is stored.

    `offset` is where its first block's stream begins in the file.
    """

    name: str
    way: Way
    source: str
    blocks: tuple[Block, ...]
    offset: int = 0

    @property
    def placed(self) -> Iterator[tuple[Block, int]]:
        """Every block with the offset of its stream in the file."""
        start = self.offset
        for block in self.blocks:
            yield block, start
            start += block.length

    def as_json(self) -> list[Any]:
        """The tensor in the header."""
        return [self.name, str(self.way), self.source, [block.as_json() for block in self.blocks]]


@dataclass(frozen=True, slots=True)
class Kept:
    """A document of the base, deflated: a shard's header, the index, the config, another file."""

    role: str
    name: str
    length: int
    stream: str
    size: int
    offset: int = 0

    def as_json(self) -> list[Any]:
        """The document in the header."""
        return [self.role, self.name, self.length, self.stream, self.size]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A sidecar's header. `about` is what the merge says of itself: options, inputs, files."""

    tensors: tuple[Restored, ...]
    documents: tuple[Kept, ...]
    about: Mapping[str, Any]

    def header(self) -> bytes:
        """Everything before the first stream."""
        body = {
            "version": VERSION,
            "about": dict(self.about),
            "documents": [kept.as_json() for kept in self.documents],
            "tensors": [tensor.as_json() for tensor in self.tensors],
        }
        packed = zlib.compress(json.dumps(body, sort_keys=True).encode(), 6)
        return MAGIC + len(packed).to_bytes(8, "little") + hashlib.sha256(packed).digest() + packed


def digest(content: bytes | bytearray | memoryview) -> str:
    """The digest of a block: 128 bits of sha256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:_HEX]


class RunningDigest:
    """The digest of a block whose pieces come in any order; one thread at a time.

    Pieces are counted in elements of any size.
    """

    __slots__ = ("_next", "_state", "_waiting")

    def __init__(self) -> None:
        """Of nothing yet."""
        self._state = hashlib.sha256()
        self._next = 0
        self._waiting: dict[int, tuple[int, bytes]] = {}

    def take(self, start: int, piece: memoryview) -> None:
        """The elements from `start` on; kept until those before them are there."""
        if start != self._next:
            self._waiting[start] = (len(piece), piece.tobytes())
            return
        self._state.update(piece)
        self._next += len(piece)
        while self._next in self._waiting:
            count, content = self._waiting.pop(self._next)
            self._state.update(content)
            self._next += count

    def text(self) -> str:
        """As `digest` would give it for all pieces in their order."""
        return self._state.hexdigest()[:_HEX]


def deflated(content: bytes) -> bytes:
    """A document's stream."""
    return zlib.compress(content, 6)


def inflated(stream: bytes, size: int) -> bytes | None:
    """Exactly `size` bytes that were deflated; None where the stream holds anything else."""
    try:
        engine = zlib.decompressobj()
        content = engine.decompress(stream, size + 1)
        engine.decompress(engine.unconsumed_tail, 1)
    except zlib.error:
        return None
    whole = engine.eof and not engine.unused_data and not engine.unconsumed_tail
    return content if whole and len(content) == size else None


def read_stream(source: Source, offset: int, length: int, check: str) -> bytes:
    """One stream; IntegrityError where its bytes are not those that were written."""
    buffer = bytearray(length)
    source.read_into(offset, memoryview(buffer))
    if digest(buffer) != check:
        _damaged(source, f"{length} bytes at offset {offset} are not what the merge wrote")
    return bytes(buffer)


def read_sidecar(source: Source) -> Sidecar:
    """The header; streams are read where they are needed.

    IntegrityError (exit 9) where the file is cut short or was changed, MismatchError (exit 4)
    where a newer version wrote it.
    """
    body, start = _body(source)
    if body.get("version") != VERSION:
        message = f"version {body.get('version')!r}, this program reads {VERSION}"
        hint = "use the version of adaptool that merged"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=source.name, hint=hint)
    try:
        documents, start = _seated(_list(body["documents"]), start, _kept)
        tensors, start = _seated(_list(body["tensors"]), start, _restored)
        about = body["about"]
    except (KeyError, TypeError, ValueError) as error:
        message = f"its header cannot be read: {error!r}"
        raise InputError(message, code=Code.RECEIPT_INVALID, file=source.name) from None
    if start != source.size or not isinstance(about, dict):
        _damaged(source, f"holds {source.size} bytes, its header speaks of {start}")
    return Sidecar(tensors, documents, about)


def _body(source: Source) -> tuple[dict[str, Any], int]:
    if source.size < _START:
        _damaged(source, f"is cut short: {source.size} bytes")
    first = bytearray(_START)
    source.read_into(0, memoryview(first))
    length = int.from_bytes(first[8:16], "little")
    if first[:8] != MAGIC or length > min(LARGEST_HEADER, source.size - _START):
        _damaged(source, "does not begin as a sidecar does, or is cut short")
    packed = bytearray(length)
    source.read_into(_START, memoryview(packed))
    if hashlib.sha256(packed).digest() != first[16:]:
        _damaged(source, "its header is not what the merge wrote")
    try:
        engine = zlib.decompressobj()
        body = json.loads(engine.decompress(bytes(packed), LARGEST_HEADER))
    except (zlib.error, ValueError, RecursionError) as error:
        message = f"its header cannot be read: {error}"
        raise InputError(message, code=Code.RECEIPT_INVALID, file=source.name) from None
    return _dict(body), _START + length


def _seated(
    entries: Sequence[Any], start: int, read: Callable[[Any, int], tuple[T, int]]
) -> tuple[tuple[T, ...], int]:
    """Every entry with the offset of its streams, and where the next begins."""
    found = []
    for entry in entries:
        one, start = read(entry, start)
        found.append(one)
    return tuple(found), start


def _kept(entry: Any, start: int) -> tuple[Kept, int]:  # noqa: ANN401 - of a JSON file
    role, name, length, stream, size = _list(entry)
    kept = Kept(_text(role), _text(name), _count(length), _text(stream), _count(size), start)
    return kept, start + kept.length


def _restored(entry: Any, start: int) -> tuple[Restored, int]:  # noqa: ANN401 - of a JSON file
    name, way, source, listed = _list(entry)
    blocks = tuple(_block(each) for each in _list(listed))
    one = Restored(_text(name), Way(way), _text(source), blocks, start)
    return one, start + sum(block.length for block in blocks)


def _block(entry: Any) -> Block:  # noqa: ANN401 - of a JSON file
    coding, length, *digests = _list(entry)
    merged, base, stream = map(_text, digests)
    return Block(Coding(coding), _count(length), merged, base, stream)


def _dict(value: Any) -> dict[str, Any]:  # noqa: ANN401 - of a JSON file
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _list(value: Any) -> list[Any]:  # noqa: ANN401 - of a JSON file
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _text(value: Any) -> str:  # noqa: ANN401 - of a JSON file
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _count(value: Any) -> int:  # noqa: ANN401 - of a JSON file
    if not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def _damaged(source: Source, message: str) -> NoReturn:
    hint = "restore the file from where it was merged, or merge again"
    raise IntegrityError(message, code=Code.INTEGRITY, file=source.name, hint=hint)
