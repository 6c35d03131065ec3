"""Xet for the stand-in of the Hub: the client's real hf_xet, on its own local store.

What is real: chunking, deduplication, packing, hashes, the format of the store, the exchange of
tokens; all of it hf_xet's code. What is not: the storage service and its protocol. The address that
the stand-in hands out, `local:///directory`, makes hf_xet write into a directory. That is code of
hf_xet for its own tests, which no document promises: `needs_local_store` skips where it is gone.

A Hub serves a file of Xet over HTTP as well, at the usual address. The stand-in does so with the
bytes that hf_xet makes of the store when a commit names them: nothing that was sent is kept beside.
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hub_requests import Reply, json_reply

_HEADER = 48
_ROW = 48
_HAS_VERIFICATION = 0x80000000
_HAS_METADATA = 0x40000000
_LAST = b"\xff" * 32


@dataclass(frozen=True)
class XetStore:
    """A directory that hf_xet writes to as if it were the storage service."""

    root: Path

    @property
    def address(self) -> str:
        """What the client is told to write to."""
        return f"local://{self.root}"

    def token(self) -> Reply:
        """The answer to a request for a token: hf_xet reads the body, the client the headers."""
        expires = int(time.time()) + 3600
        body = {"casUrl": self.address, "accessToken": "xet", "exp": expires}
        return json_reply(
            body,
            X_Xet_Cas_Url=self.address,
            X_Xet_Access_Token=str(body["accessToken"]),
            X_Xet_Token_Expiration=str(expires),
        )

    def hash_of(self, sha256: str) -> str | None:
        """Xet's name of the file with this sha256."""
        found = self._files().get(sha256)
        return found[0] if found else None

    def content(self, sha256: str) -> bytes | None:
        """The file with this sha256, put together by hf_xet from the chunks in the store."""
        import hf_xet

        found = self._files().get(sha256)
        if found is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            with hf_xet.XetSession().new_file_download_group(endpoint=self.address) as group:
                group.start_download_file(hf_xet.XetFileInfo(*found), str(file))
            return file.read_bytes()

    def chunk_bytes(self) -> int:
        """Bytes of chunks in the store: what deduplication is measured by."""
        packs = (self.root / "xet" / "xorbs" / "xorbs").glob("default.*")
        return sum(pack.stat().st_size for pack in packs if pack.suffix != ".tagset")

    def _files(self) -> dict[str, tuple[str, int]]:
        """sha256 to (Xet's hash, bytes) of every file that was uploaded whole."""
        shards = (self.root / "xet" / "xorbs" / "shards").glob("*.mdb")
        return {sha256: file for shard in shards for sha256, *file in _rows(shard.read_bytes())}


def _rows(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """(sha256, Xet's hash, bytes) of each file in a shard of metadata."""
    position = _HEADER
    while shard[position : position + 32] != _LAST:
        xet_hash = _hexadecimal(shard[position : position + 32])
        flags, count = struct.unpack_from("<II", shard, position + 32)
        position += _ROW
        sizes = [struct.unpack_from("<I", shard, position + _ROW * i + 36)[0] for i in range(count)]
        position += _ROW * count * (2 if flags & _HAS_VERIFICATION else 1)
        if flags & _HAS_METADATA:
            yield _hexadecimal(shard[position : position + 32]), xet_hash, sum(sizes)
            position += _ROW


def _hexadecimal(digest: bytes) -> str:
    """Digests are written as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def needs_local_store(root: Path) -> XetStore:
    """A store in `root`; skips where hf_xet has no local one any more."""
    hf_xet = pytest.importorskip("hf_xet")
    store = XetStore(root)
    try:
        with hf_xet.XetSession().new_upload_commit(endpoint=store.address) as commit:
            commit.start_upload_bytes(b"x", sha256=hf_xet.SKIP_SHA256)
    except (RuntimeError, ValueError, OSError) as error:
        pytest.skip(f"hf_xet writes to no local store: {error}")
    return store
