"""Large weights files that the stand-in serves without having them: zeros but where it matters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from typing import cast

BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8, "U8": 1, "I8": 1, "I32": 4, "F8_E4M3": 1}


class Sparse:
    """A body of `size` bytes with a few pieces at their offsets; its sha256 is made up.

    It has what the stand-in needs of bytes: a length, and slices. Who pulls it whole sees that the
    digest is not its own.
    """

    def __init__(self, size: int, pieces: Mapping[int, bytes]) -> None:
        self._size, self._pieces = size, pieces
        self.sha256 = hashlib.sha256(repr((size, sorted(pieces))).encode()).hexdigest()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        body = bytearray(max(0, stop - start))
        for offset, piece in self._pieces.items():
            begin, end = max(start, offset), min(stop, offset + len(piece))
            if begin < end:
                body[begin - start : end - start] = piece[begin - offset : end - offset]
        return bytes(body)


def safetensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], values: Mapping[str, bytes] | None = None
) -> bytes:
    """A safetensors file of zeros: name to dtype and shape; `values` are the bytes of some."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    pieces = {0: first}
    for name, content in (values or {}).items():
        entry = cast("dict[str, list[int]]", header[name])
        pieces[len(first) + entry["data_offsets"][0]] = content
    return cast("bytes", Sparse(len(first) + end, pieces))
