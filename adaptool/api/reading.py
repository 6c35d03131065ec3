"""The verbs that only read: inspect and validate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.api.door import Door
from adaptool.engine.values import TensorValues
from adaptool.model.inspected import Inspected
from adaptool.model.results import AdapterSummary, CheckpointSummary, ValidateResult
from adaptool.ops.inspect import inspect_paths
from adaptool.ops.validate import validate_path
from adaptool.remote.uri import as_written
from adaptool.store.disk import Disk
from adaptool.store.preflight import preflight
from adaptool.store.safe_names import printable
from adaptool.store.single_file import refuse_directory, write_file


def inspect(
    path: Path | str,
    *more: Path | str,
    values: bool = False,
    base: Path | str | None = None,
    html: Path | str | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    disk: Disk | None = None,
) -> AdapterSummary | CheckpointSummary | Inspected:
    """What adapters or checkpoints are; reads headers only, weights with `values` or `html`.

    One path gives its summary, several an `Inspected` with all of them and the adapters'
    similarity. `html` draws a page into that file, which must not exist unless `overwrite`.
    """
    paths = [Path(each) for each in (path, *more)]
    inputs = [*paths, *([Path(base)] if base else [])]
    used = disk or Disk()
    if html is not None:
        refuse_directory(Path(html))
        preflight(
            Path(html), inputs, overwrite=overwrite, need_bytes=0, disk=used, single_file=True
        )
    reader = TensorValues() if values or html is not None else None
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        against = door.path(Path(base)) if base else None
        opened = [door.path(each) for each in paths]
        found = _as_given(inspect_paths(opened, values=reader, base=against), opened, paths)
    if html is not None:
        from adaptool.pages.page import page

        write_file(Path(html), page(found).encode(), used, overwrite=overwrite)
    return found if more else found.items[0]


def _as_given(found: Inspected, opened: Sequence[Path], paths: Sequence[Path]) -> Inspected:
    """The paths as they were given: a pickle's safetensors form lies elsewhere, for a while."""
    items = tuple(
        item if here == given else replace(item, path=printable(as_written(given)))
        for item, here, given in zip(found.items, opened, paths, strict=True)
    )
    return replace(found, items=items)


def validate(
    path: Path | str,
    *,
    base: Path | str | None = None,
    target: str | None = None,
    values: bool = False,
    strict: bool = False,
    allow_pickle: bool = False,
) -> ValidateResult:
    """Findings about an adapter or a checkpoint; with `base`, whether they fit.

    With `target`, the name of a runtime (vllm, sglang, ...): what would become of it there.
    """
    reader = TensorValues() if values else None
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        against = door.path(Path(base)) if base else None
        findings = validate_path(door.path(Path(path)), base=against, values=reader, target=target)
    return ValidateResult(findings, strict)
