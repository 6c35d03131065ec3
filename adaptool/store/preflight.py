"""What can be said about an output before the first byte is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from adaptool.errors import OutputError, UsageError
from adaptool.findings import Code
from adaptool.store.disk import CONTINUE, STAT_BLOCK, Disk, amount
from adaptool.store.journal import read_journal
from adaptool.store.lock import read_publication
from adaptool.store.occupied import check_replaceable, files_under, is_published
from adaptool.store.placement import Placement, place
from adaptool.store.safe_names import printable

SPARE_BYTES = 64 << 20  # for directories, journals, and whatever else grows on the disk


def preflight(
    out: Path,
    inputs: Sequence[Path],
    *,
    overwrite: bool,
    need_bytes: int,
    disk: Disk,
    single_file: bool = False,
) -> None:
    """Check the destination; changes nothing.

    `inputs` are the local files and directories that are read, `need_bytes` the sum of all output
    sizes. UsageError (exit 2) where OUT is, holds or lies in an input; OutputError (exit 5) where
    it cannot be written, may not be replaced or does not fit on the disk.
    """
    for path in inputs:
        _check_apart(out, path)
    placement = place(out, disk, single_file=single_file)
    _check_home(placement, disk)
    if _is_unsettled(placement):
        return  # an earlier run of ours was publishing; Staging judges, under the lock
    check_replaceable(placement, overwrite=overwrite)
    _check_space(placement, need_bytes, disk)


def _check_apart(out: Path, path: Path) -> None:
    ours, theirs = _seat(out), _seat(path)
    if theirs is None:
        return  # not there: whoever reads it says so
    if ours == theirs:
        raise _overlap(out, f"is the input {printable(str(path))}", Code.OUTPUT_IS_INPUT)
    if theirs in _seats_above(out):
        raise _overlap(out, f"lies in the input {printable(str(path))}", Code.OUTPUT_OVERLAPS_INPUT)
    if ours is not None and ours in _seats_above(path):
        raise _overlap(out, f"holds the input {printable(str(path))}", Code.OUTPUT_OVERLAPS_INPUT)


def _seat(path: Path) -> tuple[int, int] | None:
    """Device and inode of what `path` leads to: one seat, whatever names, links or case it has."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _seats_above(path: Path) -> set[tuple[int, int] | None]:
    return {_seat(parent) for parent in Path(os.path.realpath(path)).parents}


def _overlap(out: Path, what: str, code: Code) -> UsageError:
    hint = "choose an OUT that has nothing to do with the inputs"
    return UsageError(what, code=code, file=printable(str(out)), hint=hint)


def _check_home(placement: Placement, disk: Disk) -> None:
    home, file = placement.home, printable(str(placement.out))
    if not home.is_dir():
        message = f"{printable(str(home))} is no directory"
        hint = "make it first (mkdir -p)"
        raise OutputError(message, code=Code.OUTPUT_PARENT_MISSING, file=file, hint=hint)
    # An old output can be moved away and removed only where it is writable itself.
    closed = [path for path in (home, placement.out) if path.is_dir() and not disk.writable(path)]
    if closed:
        message = f"nothing can be written into {printable(str(closed[0]))}"
        hint = "choose another place, or change its permissions"
        raise OutputError(message, code=Code.OUTPUT_NOT_WRITABLE, file=file, hint=hint)


def _is_unsettled(placement: Placement) -> bool:
    publication = read_publication(placement.lock)
    if publication is not None and is_published(publication, placement):
        return True
    journal = read_journal(placement.journal) if placement.in_place else None
    return journal is not None and journal.moves is not None


def _check_space(placement: Placement, need_bytes: int, disk: Disk) -> None:
    """Both the old and the new output are on the disk when they are swapped."""
    staged = 0
    if placement.partial.is_dir():  # of an earlier run: taken up again, or removed
        staged = sum(each.st_blocks * STAT_BLOCK for _, each in files_under(placement.partial))
    need, free = need_bytes + SPARE_BYTES, disk.free_space(placement.home) + staged
    if need > free:
        message = f"the output needs {amount(need)} ({need} bytes), {amount(free)} are free"
        hint = f"free {amount(need - free)} {CONTINUE}"
        file = printable(str(placement.out))
        raise OutputError(message, code=Code.DISK_FULL, file=file, hint=hint)
