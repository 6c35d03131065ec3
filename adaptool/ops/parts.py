"""The adapters of a merge, opened and decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.layouts import decode
from adaptool.model.options import MergeOptions, Strength
from adaptool.model.reading import Told
from adaptool.ops.base_reading import names_of
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
    told = Told(options.alpha, options.scale, options.allow_drop, options.expert_packing)
    names = names_of(base)
    parts = []
    for place, strength in enumerate(strengths):
        files = stack.enter_context(open_adapter(path(strength.path)))
        adapter = decode(files, told.reading(place, names))
        parts.append(Part(files, adapter, strength.weight))
    if init_adapter is not None:
        files = stack.enter_context(open_adapter(path(Path(init_adapter))))
        initial = decode(files, told.reading(0, names))
        parts[0] = replace(parts[0], initial=(files, initial))
    return parts
