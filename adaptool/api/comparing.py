"""The verb that compares two artifacts: diff."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from adaptool.api.door import Door, Progress
from adaptool.engine.values import TensorValues
from adaptool.model.comparisons import DiffResult
from adaptool.ops.base_reading import reading_with
from adaptool.ops.differences import diff_paths
from adaptool.store.checkpoint import open_checkpoint


def diff(
    a: Path | str,
    b: Path | str,
    *,
    base: Path | str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> DiffResult:
    """How two adapters or two checkpoints differ, module by module, in float64.

    Adapters are compared by what their factors make, never at out x in; checkpoints element by
    element in bounded memory, quantized ones decoded, whatever their dtypes. `base` lends its
    names and head counts to layouts that need them.
    """
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        first, second = door.path(Path(a)), door.path(Path(b))
        checkpoint = stack.enter_context(open_checkpoint(door.path(Path(base)))) if base else None
        reading = reading_with(checkpoint)
        return diff_paths(first, second, values=TensorValues(), reading=reading, report=progress)
