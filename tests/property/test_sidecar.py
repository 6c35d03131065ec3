"""The sidecar's parser: what was written is read, anything else is refused by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptool.errors import AdaptoolError, IntegrityError, MismatchError
from adaptool.findings import Code
from adaptool.store.sidecar import (
    MAGIC,
    Block,
    Coding,
    Kept,
    Restored,
    RunningDigest,
    Sidecar,
    Way,
    deflated,
    digest,
    inflated,
    read_sidecar,
    read_stream,
)
from memory_source import MemorySource

DOCUMENT = deflated(b'{"model_type": "llama"}')
STREAM = b"corrections of one block"
WRITTEN = Sidecar(
    (
        Restored("a", Way.COPIED, "a", (Block(Coding.NOTHING, 0, "m", "m", digest(b"")),)),
        Restored("b", Way.SUBTRACTED, "c", (Block(Coding.SPARSE, 24, "m", "b", digest(STREAM)),)),
    ),
    (Kept("config", "config.json", len(DOCUMENT), digest(DOCUMENT), 23),),
    {"options": {"weights": [1.0]}},
)
CONTENT = WRITTEN.header() + DOCUMENT + STREAM


def test_what_was_written_is_read() -> None:
    """Entries, offsets and streams."""
    source = MemorySource(CONTENT)
    found = read_sidecar(source)
    assert found.about == WRITTEN.about
    assert [tensor.name for tensor in found.tensors] == ["a", "b"]
    block, offset = next(found.tensors[1].placed)
    assert read_stream(source, offset, block.length, block.stream) == STREAM
    kept = found.documents[0]
    stream = read_stream(source, kept.offset, kept.length, kept.stream)
    assert inflated(stream, kept.size) == b'{"model_type": "llama"}'


def test_the_same_sidecar_is_the_same_bytes() -> None:
    """The header has one form."""
    assert WRITTEN.header() == WRITTEN.header()


@given(st.integers(0, len(CONTENT) - 1))
def test_a_cut_sidecar_is_refused(length: int) -> None:
    """At every length."""
    with pytest.raises(IntegrityError) as caught:
        read_sidecar(MemorySource(CONTENT[:length]))
    assert caught.value.code is Code.INTEGRITY


@given(st.integers(0, len(CONTENT) * 8 - 1))
def test_a_flipped_bit_is_refused(place: int) -> None:
    """In the header at once, in a stream when it is read."""
    spoilt = bytearray(CONTENT)
    spoilt[place // 8] ^= 1 << place % 8
    source = MemorySource(bytes(spoilt))
    with pytest.raises(IntegrityError):
        _read_all(source)


@given(st.binary(max_size=300))
def test_anything_else_is_refused(content: bytes) -> None:
    """Bytes of any kind behind the magic or not."""
    for each in (content, MAGIC + content):
        with pytest.raises(AdaptoolError):
            read_sidecar(MemorySource(each))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
)


@given(json_values, json_values, json_values)
def test_a_forged_header_is_refused(documents: object, tensors: object, about: object) -> None:
    """A right digest over a wrong form: an error of ours, or an empty sidecar."""
    body = {"version": 1, "documents": documents, "tensors": tensors, "about": about}
    source = MemorySource(_sealed(body))
    try:
        found = read_sidecar(source)
    except AdaptoolError:
        return
    assert found.about == about


def test_a_newer_version_is_named() -> None:
    """Exit 4, with both versions."""
    with pytest.raises(MismatchError, match="version 2, this program reads 1"):
        read_sidecar(MemorySource(_sealed({"version": 2})))


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6), st.data())
def test_a_running_digest_is_that_of_the_whole(pieces: list[bytes], drawn: st.DataObject) -> None:
    """In pieces of two-byte elements, in any order."""
    doubled = [memoryview(piece * 2).cast("H") for piece in pieces]
    starts = list(itertools.accumulate(map(len, doubled), initial=0))
    running = RunningDigest()
    for place in drawn.draw(st.permutations(range(len(doubled)))):
        running.take(starts[place], doubled[place])
    assert running.text() == digest(b"".join(piece * 2 for piece in pieces))


def _read_all(source: MemorySource) -> None:
    found = read_sidecar(source)
    for kept in found.documents:
        read_stream(source, kept.offset, kept.length, kept.stream)
    for tensor in found.tensors:
        for block, offset in tensor.placed:
            read_stream(source, offset, block.length, block.stream)


def _sealed(body: object) -> bytes:
    packed = zlib.compress(json.dumps(body).encode())
    return MAGIC + len(packed).to_bytes(8, "little") + hashlib.sha256(packed).digest() + packed
