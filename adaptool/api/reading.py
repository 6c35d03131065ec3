"""The verbs that only read: inspect and validate."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from adaptool.api.door import Door
from adaptool.engine.values import TensorValues
from adaptool.model.results import AdapterSummary, CheckpointSummary, ValidateResult
from adaptool.ops.inspect import inspect_path
from adaptool.ops.validate import validate_path


def inspect(
    path: Path | str,
    *,
    values: bool = False,
    base: Path | str | None = None,
    allow_pickle: bool = False,
) -> AdapterSummary | CheckpointSummary:
    """What an adapter or a checkpoint is; reads headers only, weights with `values`."""
    reader = TensorValues() if values else None
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        against = door.path(Path(base)) if base else None
        return inspect_path(door.path(Path(path)), values=reader, base=against)


def validate(
    path: Path | str,
    *,
    base: Path | str | None = None,
    values: bool = False,
    strict: bool = False,
    allow_pickle: bool = False,
) -> ValidateResult:
    """Findings about an adapter or a checkpoint; with `base`, whether they fit."""
    reader = TensorValues() if values else None
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        against = door.path(Path(base)) if base else None
        findings = validate_path(door.path(Path(path)), base=against, values=reader)
    return ValidateResult(findings, strict)
