"""Putting a finished output in its place.

Where OUT can be renamed, whoever looks sees what was there before or all that is new, at any
instant. Where the file system cannot swap two names, OUT is absent for an instant, and a run that
is killed there is repaired by the next one. Where OUT cannot be renamed, files move one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from adaptool.findings import Code, Finding, Severity
from adaptool.store.disk import Disk
from adaptool.store.journal import Moves, read_journal
from adaptool.store.occupied import files_under
from adaptool.store.own_files import RECEIPT
from adaptool.store.placement import OURS, Placement
from adaptool.store.safe_names import printable

_CONFIGS = frozenset({"config.json", "adapter_config.json", "model_index.json"})


def publish(
    placement: Placement, moves: Moves | None, disk: Disk, check: Callable[[], None]
) -> None:
    """Make what is staged the output; `moves` where OUT cannot be renamed. Durable on return.

    `check` raises where another run holds the output by now; it is asked before every step.
    """
    check()
    if moves is not None:
        _move_all(placement, moves, disk, check)
    elif not os.path.lexists(placement.out):
        _rename_to_free_name(placement.staged, placement.out, disk)
    elif _is_renamed_over(placement):
        disk.rename(placement.staged, placement.out)
    elif not disk.exchange(placement.staged, placement.out):
        _swap_in_two_steps(placement, disk)
    disk.fsync_directory(placement.home)


def take_over(placement: Placement, disk: Disk) -> None:
    """Give what an earlier run left a new name: whoever still works there works there no more."""
    for number, left in enumerate(placement.left()):
        if not number:
            disk.rename(left, placement.work)
            continue
        aside = left / placement.aside.name  # only where runs got at one output side by side
        if os.path.lexists(aside) and not os.path.lexists(placement.out):
            disk.rename(aside, placement.out)
        disk.rmtree(left)


def settle(placement: Placement, disk: Disk, check: Callable[[], None]) -> None:
    """Repair what a run that was killed between two steps of `publish` left behind."""
    if os.path.lexists(placement.aside):
        if os.path.lexists(placement.out):
            disk.rmtree(placement.aside)
        else:
            disk.rename(placement.aside, placement.out)
            disk.fsync_directory(placement.home)
    journal = read_journal(placement.journal) if placement.in_place else None
    if journal is not None and journal.moves is not None:
        publish(placement, journal.moves, disk, check)


def plan_moves(placement: Placement, names: Iterable[str]) -> Moves:
    """The order of a publication file by file.

    What makes a directory loadable goes first from the old and comes last of the new, so that no
    loader takes a mixture of two models for a model.
    """
    order = tuple(sorted(names, key=lambda name: (_rank(name), name)))
    old = {name for name, _ in files_under(placement.out, skip=OURS)}
    return Moves(tuple(sorted(old.difference(order))), order)


def weaker_promise(placement: Placement) -> Finding:
    """What to say where files move one by one."""
    return Finding(
        code=Code.PUBLISH_WEAKER,
        severity=Severity.NOTE,
        message="cannot be renamed (a mount point, or its parent is read-only): files move in one "
        "by one, config, index and receipt last",
        file=printable(str(placement.out)),
        hint="if the run is killed meanwhile, run the same command again before using OUT",
    )


def _rank(name: str) -> int:
    base = PurePosixPath(name).name
    if name == RECEIPT:
        return 3
    if base.endswith(".index.json"):
        return 2
    return 1 if base in _CONFIGS else 0


def _rename_to_free_name(staged: Path, out: Path, disk: Disk) -> None:
    if disk.rename_new(staged, out):
        return
    if not staged.is_dir() and disk.link(staged, out):
        disk.unlink(staged)
    else:  # a directory replaces only an empty one, so nothing is lost
        disk.rename(staged, out)


def _is_renamed_over(placement: Placement) -> bool:
    """Whether rename itself replaces OUT: a file by a file, an empty directory by a directory."""
    if placement.out.is_dir():
        return placement.staged.is_dir() and not os.listdir(placement.out)
    return not placement.staged.is_dir()


def _swap_in_two_steps(placement: Placement, disk: Disk) -> None:
    with ExitStack() as undo:
        disk.rename(placement.out, placement.aside)
        undo.callback(disk.rename, placement.aside, placement.out)
        disk.rename(placement.staged, placement.out)
        undo.pop_all()


def _move_all(placement: Placement, moves: Moves, disk: Disk, check: Callable[[], None]) -> None:
    """Move what has not moved yet; doing it again continues."""
    waiting = [name for name in moves.order if os.path.lexists(placement.payload / name)]
    for name in moves.stale:
        check()
        disk.unlink(placement.out / name)
    for name in waiting:
        if _rank(name) and name != RECEIPT:
            check()
            disk.unlink(placement.out / name)
    disk.fsync_directory(placement.out)
    for loadable in (False, True):
        part = [name for name in waiting if bool(_rank(name)) is loadable]
        _move(placement, part, disk)


def _move(placement: Placement, names: list[str], disk: Disk) -> None:
    folders: set[Path] = set()
    for name in names:
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            disk.mkdir(placement.out / parent)
            folders.add((placement.out / parent).parent)
        disk.rename(placement.payload / name, placement.out / name)
        folders.add((placement.out / name).parent)
    for folder in sorted(folders):
        disk.fsync_directory(folder)
