"""Digests of sources and of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from adaptool.store.source import Source

CHUNK_BYTES = 4 * 1024 * 1024
SAMPLE_BYTES = 64 * 1024
SAMPLES = 16
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
_FINGERPRINT = b"adaptool fingerprint 1\n"


def digest_of_bytes(content: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def git_digest(size: int) -> hashlib._Hash:
    """The beginning of git's own name of a file of `size` bytes, to be fed with its bytes."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def sha256_of(source: Source) -> str:
    """sha256 of everything in `source`, in hexadecimal; reads it once, 4 MiB at a time."""
    digest = hashlib.sha256()
    _feed(digest, source, 0, source.size)
    return digest.hexdigest()


def known_sha256(source: Source) -> str | None:
    """What the source says its sha256 is, before anything is read; None where it says nothing."""
    known = getattr(source, "sha256", None)
    return known if isinstance(known, str) else None


def fingerprint(source: Source) -> str:
    """A quick digest of a safetensors file, in hexadecimal: finds another file, not one bad bit.

    sha256 over: a version line; the size as u64 little-endian; the header (length and JSON; the
    length alone where it is no plausible header); then the sampled blocks, in order. Blocks are
    the file cut at multiples of 64 KiB; sampled are, of n blocks, number `i * (n - 1) // 15` for
    i = 0..15, each once. So a file of 1 MiB or less is read whole, and 5 GB cost 1 MiB of reads.
    """
    digest = hashlib.sha256(_FINGERPRINT + source.size.to_bytes(8, "little"))
    _feed(digest, source, 0, _header_bytes(source))
    for block in _sampled_blocks(source.size):
        start = block * SAMPLE_BYTES
        _feed(digest, source, start, min(SAMPLE_BYTES, source.size - start))
    return digest.hexdigest()


def _sampled_blocks(size: int) -> Iterator[int]:
    blocks = -(-size // SAMPLE_BYTES)
    if blocks:
        yield from sorted({i * (blocks - 1) // (SAMPLES - 1) for i in range(SAMPLES)})


def _header_bytes(source: Source) -> int:
    """Bytes of length and header, as far as the file has them."""
    if source.size < _LENGTH_BYTES:
        return source.size
    buffer = bytearray(_LENGTH_BYTES)
    source.read_into(0, memoryview(buffer))
    length = int.from_bytes(buffer, "little")
    if length > min(_MOST_HEADER_BYTES, source.size - _LENGTH_BYTES):
        return _LENGTH_BYTES
    return _LENGTH_BYTES + length


def _feed(digest: hashlib._Hash, source: Source, start: int, length: int) -> None:
    buffer = memoryview(bytearray(min(CHUNK_BYTES, length)))
    end = start + length
    while start < end:
        part = buffer[: end - start]
        source.read_into(start, part)
        digest.update(part)
        start += part.nbytes
