"""Digests and fingerprints."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adaptool.store.digest import digest_of_bytes, fingerprint, sha256_of
from adaptool.store.local import LocalSource
from bad_builders import header_bytes
from memory_source import MemorySource

BLOCK = 64 * 1024


@dataclass
class SparseSource:
    """A source of zeros, of any size, that remembers how much was read."""

    size: int
    name: str = "sparse"
    read: list[tuple[int, int]] = field(default_factory=list)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Zeros, and a note of what was asked for."""
        self.read.append((offset, buffer.nbytes))
        buffer[:] = bytes(buffer.nbytes)

    def close(self) -> None:
        """Nothing to let go of."""


def content(blocks: int, extra: int = 0) -> bytes:
    """A file with a header and this many blocks, the last one short by design."""
    raw = header_bytes({"__metadata__": {"a": "b"}})
    rest = random.Random(7).randbytes(blocks * BLOCK + extra - len(raw))
    return raw + rest


def documented(raw: bytes) -> str:
    """The fingerprint, straight from its description."""
    digest = hashlib.sha256(b"adaptool fingerprint 1\n" + len(raw).to_bytes(8, "little"))
    length = int.from_bytes(raw[:8], "little")
    digest.update(raw[: 8 + length])
    cut = [raw[i : i + BLOCK] for i in range(0, len(raw), BLOCK)]
    for number in sorted({i * (len(cut) - 1) // 15 for i in range(16)}):
        digest.update(cut[number])
    return digest.hexdigest()


@pytest.mark.parametrize("size", [0, 1, 4 * 1024 * 1024, 4 * 1024 * 1024 + 1, 9_000_000])
def test_sha256_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    """The digest equals hashlib's over all bytes, at and around the chunk size."""
    raw = random.Random(size).randbytes(size)
    path = tmp_path / "f"
    path.write_bytes(raw)
    with LocalSource(path) as source:
        assert sha256_of(source) == hashlib.sha256(raw).hexdigest() == digest_of_bytes(raw)


@pytest.mark.parametrize("blocks", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("extra", [0, 1])
def test_fingerprint_is_what_its_description_says(blocks: int, extra: int) -> None:
    """Version line, size, header, sampled blocks."""
    raw = content(blocks, extra)
    assert fingerprint(MemorySource(raw)) == documented(raw)


def test_fingerprint_of_five_gigabytes_reads_a_megabyte() -> None:
    """The cost does not grow with the file, and the last block is among those read."""
    source = SparseSource(5 * 10**9)
    fingerprint(source)
    assert sum(length for _, length in source.read) <= 16 * BLOCK + 16
    offset, length = source.read[-1]
    assert offset + length == source.size


def test_fingerprint_of_a_small_file_sees_every_byte() -> None:
    """Up to 1 MiB, each flipped byte is another fingerprint."""
    raw = content(16)
    same = fingerprint(MemorySource(raw))
    for position in range(0, len(raw), 9973):
        flipped = bytearray(raw)
        flipped[position] ^= 1
        assert fingerprint(MemorySource(bytes(flipped))) != same


@pytest.mark.parametrize("raw", [b"", b"abc", b"\xff" * 8, b"\xff" * 100])
def test_fingerprint_takes_any_file(raw: bytes) -> None:
    """Files without a plausible header have one as well, and it differs."""
    assert fingerprint(MemorySource(raw)) != fingerprint(MemorySource(raw + b"x"))
