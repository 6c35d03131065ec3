"""The verb that compares two artifacts: diff."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.api.door import Door, Progress
from adaptool.api.on_base import OnBase
from adaptool.engine.values import TensorValues
from adaptool.model.comparisons import DiffResult
from adaptool.model.keywords import reads_keywords
from adaptool.model.options import Machine
from adaptool.model.reading import Told
from adaptool.ops.differences import diff_paths


@reads_keywords
def diff(
    a: Path | str,
    b: Path | str,
    *,
    base: Path | str | None = None,
    alpha: Sequence[float] = (),
    scale: Sequence[float] = (),
    expert_packing: str = "peft",
    allow_drop: Sequence[str] = (),
    allow_pickle: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> DiffResult:
    """How two adapters or two checkpoints differ, module by module, in float64.

    Adapters are compared by what their factors make, never at out x in; checkpoints element by
    element in bounded memory, quantized ones decoded, whatever their dtypes. `base` lends its
    names and head counts to layouts that need them. `alpha` and `scale` are, in the order of the
    two, for files that carry no scale.
    """
    told = Told.of(alpha, scale, allow_drop, expert_packing)
    machine = Machine(device, threads)
    values = TensorValues(machine)
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        first, second = door.path(Path(a)), door.path(Path(b))
        beside = OnBase.opened(door, base, machine, weights=False)
        readings = told.reading(0, beside.names), told.reading(1, beside.names)
        found = diff_paths(first, second, values=values, readings=readings, report=progress)
        return replace(found, findings=door.named(found.findings))
