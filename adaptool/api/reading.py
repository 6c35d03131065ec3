"""The verbs that only read: inspect and validate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from adaptool.api.door import Door
from adaptool.engine.values import TensorValues
from adaptool.errors import AdaptoolError, InternalError, Interrupted, ResourceError
from adaptool.model.inspected import Inspected
from adaptool.model.keywords import reads_keywords
from adaptool.model.reading import Told
from adaptool.model.results import AdapterSummary, CheckpointSummary, ValidateResult
from adaptool.model.validated import Validated
from adaptool.ops.belonging import wholes
from adaptool.ops.inspect import inspect_paths
from adaptool.ops.integrity import integrity_findings
from adaptool.ops.validate import validate_path
from adaptool.store.addresses import as_written, hub_uri
from adaptool.store.disk import Disk
from adaptool.store.preflight import preflight
from adaptool.store.safe_names import printable
from adaptool.store.single_file import refuse_directory, write_file


@reads_keywords
def inspect(
    path: Path | str,
    *more: Path | str,
    values: bool = False,
    base: Path | str | None = None,
    html: Path | str | None = None,
    alpha: Sequence[float] = (),
    scale: Sequence[float] = (),
    expert_packing: str = "peft",
    allow_drop: Sequence[str] = (),
    allow_pickle: bool = False,
    overwrite: bool = False,
    disk: Disk | None = None,
) -> AdapterSummary | CheckpointSummary | Inspected:
    """What adapters or checkpoints are; reads headers only, weights with `values` or `html`.

    One path gives its summary, several an `Inspected` with all of them and the adapters'
    similarity. `html` draws a page into that file, which must not exist unless `overwrite`.
    `alpha` and `scale` are, in the order of the paths, for files that carry no scale; what is
    unknown without them is left out.
    """
    told = Told.of(alpha, scale, allow_drop, expert_packing)
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
        # The weights themselves are read for their values alone.
        enter = door.headers if reader is None else door.path
        against = enter(Path(base)) if base else None
        opened = [enter(each) for each in paths]
        found = inspect_paths(opened, values=reader, base=against, told=told, opener=door.source)
        found = _as_given(found, opened, paths, door)
    if html is not None:
        from adaptool.pages.page import page

        write_file(Path(html), page(found).encode(), used, overwrite=overwrite)
    return found if more else found.items[0]


def _as_given(
    found: Inspected, opened: Sequence[Path], paths: Sequence[Path], door: Door
) -> Inspected:
    """The paths as they were given: a pickle's safetensors form lies elsewhere, for a while."""
    items = tuple(
        replace(
            item,
            path=item.path if here == given else printable(as_written(given)),
            findings=door.named(item.findings),
        )
        for item, here, given in zip(found.items, opened, paths, strict=True)
    )
    return replace(found, items=items)


@reads_keywords
def validate(
    path: Path | str,
    *more: Path | str,
    base: Path | str | None = None,
    target: str | None = None,
    values: bool = False,
    checksum: bool = False,
    strict: bool = False,
    containing: bool = False,
    alpha: Sequence[float] = (),
    scale: Sequence[float] = (),
    expert_packing: str = "peft",
    allow_drop: Sequence[str] = (),
    allow_pickle: bool = False,
) -> ValidateResult | Validated:
    """Findings about an adapter or a checkpoint; with `base`, whether they fit.

    With `target`, the name of a runtime (vllm, sglang, ...): what would become of it there. With
    `checksum` every file's sha256 is compared with SHA256SUMS and the receipt beside it. Several
    paths give a `Validated` with all of them, and so does `containing`, which checks the artifact
    that each path is a file of, once. `alpha` and `scale` are, in the order of the paths, for
    files that carry no scale.
    """
    told = Told.of(alpha, scale, allow_drop, expert_packing)
    paths = tuple(map(Path, (path, *more)))
    paths = wholes(paths) if containing else paths
    reader = TensorValues() if values else None

    def checked(one: Path, place: int) -> ValidateResult:
        with ExitStack() as stack:
            door = Door(stack, allow_pickle)
            enter = door.headers if reader is None and not checksum else door.path
            against, here = (enter(Path(base)) if base else None), enter(one)
            found = validate_path(
                here,
                base=against,
                values=reader,
                target=target,
                told=told.of_one(place),
                opener=door.source,
            )
            if checksum:
                # A pickle's safetensors form, which `here` may be, has no sums.
                found = (*integrity_findings(one if hub_uri(one) is None else here), *found)
        return ValidateResult(door.named(found), strict, printable(as_written(one)))

    if not more and not containing:
        return checked(paths[0], 0)
    return Validated(
        tuple(
            _attempted(partial(checked, one, place), one, strict=strict)
            for place, one in enumerate(paths)
        )
    )


def _attempted(
    checked: Callable[[], ValidateResult], path: Path, *, strict: bool
) -> ValidateResult:
    """The result; what is no artifact at all is a finding here, so that the others are checked."""
    try:
        return checked()
    except (Interrupted, InternalError, ResourceError):
        raise
    except AdaptoolError as error:
        findings = tuple(each.as_finding() for each in (error, *error.others))
        return ValidateResult(findings, strict, printable(as_written(path)))
