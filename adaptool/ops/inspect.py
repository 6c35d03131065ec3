"""placeholder"""

from __future__ import annotations
from pathlib import Path
from adaptool.model.results import AdapterSummary, CheckpointSummary


def inspect_path(
    path: Path, *, values: bool, base: Path | None
) -> AdapterSummary | CheckpointSummary:
    raise NotImplementedError
