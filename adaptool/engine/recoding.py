"""Merged values stored in a packed weight's own format: measured, then encoded, tile by tile.

The weight is computed twice, because scales are known only when all values were seen; what is held
meanwhile is a tile and the scales. Every tile is decoded again to learn how much of the delta it
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptool.engine.outlets import Outlet
from adaptool.engine.sampling import Sampling
from adaptool.engine.tiles import RecodeJob
from adaptool.errors import InternalError
from adaptool.findings import Code
from adaptool.model.plan import Row
from adaptool.model.quantizer import Encoding, Packed
from adaptool.quantizers import quantizers
from adaptool.quantizers.decoding import StoredParts

if TYPE_CHECKING:
    import torch

    from adaptool.engine.lane import Lane, Prepared

CODES = "weight"


class FreshParts:
    """The parts of a weight that is being encoded: new scales, and the codes of one tile."""

    def __init__(self, packed: Packed, parts: Mapping[str, torch.Tensor]) -> None:
        """`parts` by role; what is not among them is read as it is stored."""
        self._stored = StoredParts(packed)
        self._width = packed.roles[CODES].dtype.bits // 8
        self._dtype = str(packed.roles[CODES].dtype.torch)
        self._parts = parts
        self._codes: tuple[int, torch.Tensor | None] = (0, None)

    def show(self, first: int, codes: torch.Tensor) -> None:
        """The codes' bytes from byte `first` on."""
        self._codes = (first, codes)

    def whole(self, role: str) -> torch.Tensor:
        """All of a part in its own dtype and shape."""
        found = self._parts.get(role)
        return self._stored.whole(role) if found is None else found

    def span(self, role: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a part, flat."""
        import torch

        first, codes = self._codes
        if role != CODES or codes is None:
            found = self._parts.get(role)
            if found is None:
                return self._stored.span(role, start, stop)
            return found.reshape(-1)[start:stop]
        own = slice(start * self._width - first, stop * self._width - first)
        dtype: torch.dtype = getattr(torch, self._dtype)
        return codes[own].view(dtype)


def recode(
    job: RecodeJob, lane: Lane, updates: list[Prepared], outlet: Outlet, sampling: Sampling
) -> None:
    """Store one packed weight anew; raises where a value does not fit."""
    quantizer = quantizers()[job.packed.scheme]
    if not isinstance(quantizer, Encoding):
        message = f"{job.packed.scheme} is not written"
        raise InternalError(message, code=Code.INTERNAL, tensor=job.row.name)
    encoder = quantizer.encoder(job.packed)
    ratio = job.row.matrix[1] // job.packed.columns
    done = 0

    def rounded(start: int, out: torch.Tensor) -> torch.Tensor:
        return lane.rounded(job.row, start, out).reshape(-1, job.packed.columns)

    def measure(start: int, _: torch.Tensor, out: torch.Tensor) -> None:
        encoder.measure(rounded(start, out), start * ratio)

    lane.visit(job.row, updates, measure, encoder.granule)
    packed, parts = encoder.settle()
    for role, part in parts.items():
        _fill(outlet, job.parts[role], part)
    fresh = FreshParts(packed, parts)

    def encode(start: int, base: torch.Tensor, out: torch.Tensor) -> None:
        nonlocal done
        values, first = rounded(start, out), start * ratio
        codes = encoder.encode(values, first)
        outlet.fill(job.parts[CODES], done, codes.numpy().data)
        fresh.show(done, codes)
        done += len(codes)
        decoded = quantizer.decode(fresh, packed, first, first + len(values))
        sampling.take_all(job.row, base, out, decoded.reshape(out.shape))

    lane.visit(job.row, updates, encode, encoder.granule)


def _fill(outlet: Outlet, row: Row, part: torch.Tensor) -> None:
    import torch

    raw = part.contiguous().reshape(-1).view(torch.uint8)
    if len(raw) != row.length:
        message = f"made {len(raw)} bytes for a part of {row.length}"
        raise InternalError(message, code=Code.INTERNAL, tensor=row.name)
    outlet.fill(row, 0, raw.numpy().data)
