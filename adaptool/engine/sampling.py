"""What 16-bit storage did to the deltas, over sampled rows.

32 rows of every touched tensor, in four runs evenly spread, whatever the tile size: full statistics
would cost more than the merge. A weight that is stored in its packed format again is sampled whole,
since its figure decides whether the merge is worth having. Each row's sums are taken on its own and
added up in the plan's order, so the figures depend on nothing but the inputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.model.plan import Row
from adaptool.model.results import MergeStats

if TYPE_CHECKING:
    import torch

RUNS = 4
RUN_ROWS = 8
DIGITS = 6


@dataclass(frozen=True, slots=True)
class RowSample:
    """Sums over one sampled row of a tensor."""

    elements: int
    changed: int
    stored_by_delta: float
    delta_by_delta: float

    def __add__(self, other: RowSample) -> RowSample:
        """Sums over both."""
        return RowSample(
            self.elements + other.elements,
            self.changed + other.changed,
            self.stored_by_delta + other.stored_by_delta,
            self.delta_by_delta + other.delta_by_delta,
        )


class Sampling:
    """Collects samples from all workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[tuple[str, int], RowSample] = {}
        self._recoded: set[str] = set()

    def take(
        self,
        row: Row,
        start: int,
        base: torch.Tensor,
        out: torch.Tensor,
        stored: torch.Tensor,
    ) -> None:
        """Sample a tile: unmerged values, computed values, and what is stored, (rows, columns)."""
        picks = sampled(row, start, start + len(base))
        local = [index - start for index in picks]
        samples = _samples(base[local].cpu(), out[local].cpu(), stored[local])
        with self._lock:
            self._samples.update(
                {(row.name, index): sample for index, sample in zip(picks, samples, strict=True)}
            )

    def take_all(
        self, row: Row, base: torch.Tensor, out: torch.Tensor, stored: torch.Tensor
    ) -> None:
        """Sample every row of a recoded weight's tile; its tiles come in order."""
        samples = _samples(base.cpu(), out.cpu(), stored)
        with self._lock:
            self._recoded.add(row.name)
            before = self._samples.get((row.name, 0), RowSample(0, 0, 0.0, 0.0))
            self._samples[row.name, 0] = sum(samples, start=before)

    def stats(self, planned: Sequence[Row]) -> MergeStats:
        """The figures over all samples, and of each recoded weight alone."""
        rows = [row.computed for row in planned]
        order = {row.name: place for place, row in enumerate(rows)}
        keys = sorted(self._samples, key=lambda key: (order[key[0]], key[1]))
        samples = [self._samples[key] for key in keys]
        elements = sum(sample.elements for sample in samples)
        errors = {row.name: getattr(row.source.source, "mean_square_error", None) for row in rows}
        error = sum(
            (errors[name] or 0.0) * self._samples[name, index].elements for name, index in keys
        )
        delta = sum(sample.delta_by_delta for sample in samples)
        return MergeStats(
            changed_fraction=_rounded(sum(sample.changed for sample in samples), elements),
            retained=_rounded(abs(sum(sample.stored_by_delta for sample in samples)), delta),
            quantization_ratio=_rounded(math.sqrt(error), math.sqrt(delta)) if error else None,
            recoded={
                name: _rounded(sample.stored_by_delta, sample.delta_by_delta)
                for (name, _), sample in zip(keys, samples, strict=True)
                if name in self._recoded
            },
        )


def sampled(row: Row, start: int, stop: int) -> list[int]:
    """The sampled rows of the matrix in [start, stop)."""
    count = row.matrix[0]
    runs = (place * count // RUNS for place in range(RUNS))
    picks = {index for first in runs for index in range(first, min(first + RUN_ROWS, count))}
    return sorted(index for index in picks if start <= index < stop)


def _samples(base: torch.Tensor, out: torch.Tensor, stored: torch.Tensor) -> list[RowSample]:
    """One sample per row; products row by row, so that a tile's other rows do not matter."""
    changed = (base.to(stored.dtype) != stored).sum(dim=1).tolist()
    delta = (out.double() - base.double()).numpy()
    kept = (stored.double() - base.double()).numpy()
    return [
        RowSample(
            elements=row.size,
            changed=count,
            stored_by_delta=float(there @ row),
            delta_by_delta=float(row @ row),
        )
        for row, there, count in zip(delta, kept, changed, strict=True)
    ]


def _rounded(part: float, total: float) -> float | None:
    """A share to six digits: what a row's dot product leaves open is far below."""
    return float(f"{part / total:.{DIGITS}g}") if total else None
