"""The adapters of a merge, opened and decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.layouts import decode
from adaptool.model.options import MergeOptions, Strength
from adaptool.model.reading import BaseNames, Reading
from adaptool.ops.merge import Part
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import Checkpoint


def opened_parts(
    stack: ExitStack,
    path: Callable[[Path], Path],
    base: Checkpoint,
    strengths: Sequence[Strength],
    *,
    options: MergeOptions,
    init_adapter: Path | str | None,
) -> list[Part]:
    """Every adapter, closed by `stack`; the first may have begun as `init_adapter`.

    `path` gives what is opened for a path.
    """
    shapes = {name: ref.shape for name, ref in base.tensors.items()}
    names = BaseNames(shapes, base.config)
    reading = Reading(options.allow_drop, options.expert_packing, base=names)
    parts = []
    for strength in strengths:
        files = stack.enter_context(open_adapter(path(strength.path)))
        adapter = decode(files, reading)
        parts.append(Part(files, adapter, strength.weight))
    if init_adapter is not None:
        files = stack.enter_context(open_adapter(path(Path(init_adapter))))
        initial = decode(files, reading)
        parts[0] = replace(parts[0], initial=(files, initial))
    return parts
