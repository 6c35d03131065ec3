"""What `inspect` returns for several paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptool.findings import Finding
from adaptool.model.results import AdapterSummary, CheckpointSummary

Summary = AdapterSummary | CheckpointSummary


@dataclass(frozen=True, slots=True)
class Inspected:
    """Several artifacts side by side.

    `similarity[i][j]` is the cosine between the deltas of items i and j over all their modules;
    None where one of them is no low-rank adapter, all of it None where no weights were read.
    """

    items: tuple[Summary, ...]
    similarity: tuple[tuple[float | None, ...], ...] | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all items."""
        return tuple(finding for item in self.items for finding in item.findings)

    def as_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints for several paths."""
        matrix = self.similarity
        return {
            "items": [item.as_json() for item in self.items],
            "similarity": [list(row) for row in matrix] if matrix is not None else None,
        }
