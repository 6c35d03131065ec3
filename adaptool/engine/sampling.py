"""What 16-bit storage did to the deltas, over sampled rows.

32 rows of every touched tensor, in four runs evenly spread, whatever the tile size: full statistics
would cost more than the merge. Each row's sums are taken on its own and added up in the plan's
order, so the figures depend on nothing but the inputs.
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


class Sampling:
    """Collects samples from all workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[tuple[str, int], RowSample] = {}

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

    def stats(self, rows: Sequence[Row]) -> MergeStats:
        """The figures over all samples."""
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
