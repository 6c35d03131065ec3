"""placeholder"""

from __future__ import annotations
from pathlib import Path
from adaptool.findings import Finding


def validate_path(path: Path, *, base: Path | None, values: bool) -> tuple[Finding, ...]:
    raise NotImplementedError
