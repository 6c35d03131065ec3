"""A packed weight as a source of plain bytes: decoded where and when they are read.

So a quantized base looks to plan and engine like any other: a tensor of the decoded dtype whose
bytes happen to be computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from adaptool.model.quantizer import Packed
from adaptool.quantizers import quantizers
from adaptool.store.source import Source, check_unchanged
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch


class StoredParts:
    """Reads a packed weight's stored tensors; whole ones are read once."""

    def __init__(self, packed: Packed) -> None:
        """Nothing is read yet."""
        self._packed = packed
        self._whole: dict[str, torch.Tensor] = {}

    def whole(self, role: str) -> torch.Tensor:
        """All of a stored tensor in its own dtype and shape."""
        found = self._whole.get(role)
        if found is None:
            ref = self._packed.roles[role]
            found = self.span(role, 0, ref.elements).reshape(ref.shape)
            self._whole[role] = found
        return found

    def span(self, role: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop), flat."""
        import torch

        ref = self._packed.roles[role]
        size = ref.dtype.bits // 8
        raw = torch.empty((stop - start) * size, dtype=torch.uint8)
        if len(raw):
            ref.source.read_into(ref.offset + start * size, raw.numpy().data)
        dtype: torch.dtype = getattr(torch, str(ref.dtype.torch))
        return raw.view(dtype)


class DecodedSource:
    """The plain bytes of one packed weight.

    What was decoded last is kept (a granule of rows), since neighbouring reads come next. The
    stored tensors read whole (scales, maps) stay until the last reader closes or forgets it.
    """

    def __init__(self, packed: Packed) -> None:
        """`packed` says what to decode; nothing is read before the first `read_into`."""
        self.packed = packed
        self._parts: StoredParts | None = None
        self._latest: tuple[int, int, memoryview] | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The file of the first stored tensor."""
        return next(iter(self.packed.roles.values())).file

    @property
    def size(self) -> int:
        """Bytes of the plain weight."""
        return self.packed.rows * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.packed.columns * self.packed.dtype.bits // 8

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Decode the rows that hold these bytes."""
        width, granule = self._row_bytes, self.packed.granule
        first = offset // width // granule * granule
        last = -(-(offset + len(buffer)) // width)
        last = min(self.packed.rows, -(-last // granule) * granule)
        rows = self._granule(first, last)
        begin = offset - first * width
        buffer[:] = rows[begin : begin + len(buffer)]

    def _granule(self, first: int, last: int) -> memoryview:
        """Decoded rows, remembered where a granule is large and reads come in pieces of it."""
        if self.packed.granule == 1:
            return self._decoded(first, last)
        with self._lock:
            latest = self._latest
        if latest is not None and latest[:2] == (first, last):
            return latest[2]
        rows = self._decoded(first, last)
        with self._lock:
            self._latest = (first, last, rows)
        return rows

    def _decoded(self, first: int, last: int) -> memoryview:
        import torch

        with self._lock:
            parts = self._parts = self._parts or StoredParts(self.packed)
        with torch.inference_mode():
            values = quantizers()[self.packed.scheme].decode(parts, self.packed, first, last)
        return values.contiguous().view(torch.uint8).reshape(-1).numpy().data

    def forget(self) -> None:
        """Let go of what was kept."""
        with self._lock:
            self._parts, self._latest = None, None

    def beneath(self) -> Iterable[Source]:
        """The files that hold its parts."""
        return [ref.source for ref in self.packed.roles.values()]

    def check_unchanged(self) -> None:
        """IntegrityError where a file that holds a part changed since it was opened."""
        for ref in self.packed.roles.values():
            check_unchanged(ref.source)

    def close(self) -> None:
        """Same as forget: the files belong to the checkpoint."""
        self.forget()


def plain(packed: Packed) -> TensorRef:
    """The packed weight as an ordinary tensor of the decoded dtype."""
    source = DecodedSource(packed)
    return TensorRef(packed.name, packed.dtype, packed.shape, 0, source.size, source)
