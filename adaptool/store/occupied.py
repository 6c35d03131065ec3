"""What lies at the destination, and whether it may be replaced."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from adaptool.errors import AdaptoolError, OutputError
from adaptool.findings import Code
from adaptool.store.digest import fingerprint
from adaptool.store.local import LocalSource, unreadable
from adaptool.store.lock import Publication
from adaptool.store.own_files import SIDECARS, receipt_outputs
from adaptool.store.placement import OURS, Placement
from adaptool.store.safe_names import printable


def check_replaceable(placement: Placement, *, overwrite: bool) -> None:
    """OutputError (exit 5) unless OUT is free, or `overwrite` and its loss is accounted for."""
    kind = _kind(placement.out)
    if kind is None or (
        kind == stat.S_IFDIR and not placement.single_file and _is_empty(placement)
    ):
        return
    if kind not in {stat.S_IFDIR, stat.S_IFREG}:
        raise _refusal(placement.out, "is neither a file nor a directory", "choose another name")
    if not overwrite:
        what = "exists" if kind == stat.S_IFREG or placement.single_file else "is not empty"
        raise _refusal(placement.out, what, "choose another name, or --overwrite")
    if kind == stat.S_IFDIR:
        _check_accounted(placement)


def is_published(publication: Publication, placement: Placement) -> bool:
    """Whether OUT is, file by file, what the publication was about to put there."""
    if _kind(placement.out) == stat.S_IFREG:
        there = {placement.out.name: os.lstat(placement.out).st_size}
        return there == publication.files and holds(publication, placement.out.parent)
    if _kind(placement.out) != stat.S_IFDIR:
        return False
    there = {name: status.st_size for name, status in files_under(placement.out, skip=OURS)}
    return there == publication.files and holds(publication, placement.out)


def holds(publication: Publication, root: Path) -> bool:
    """Whether the files below `root` are those of the publication, as far as samples tell."""
    try:
        return mark_of(root, publication.files) == publication.mark
    except (AdaptoolError, OSError):
        return False


def mark_of(root: Path, names: Iterable[str]) -> str:
    """The digest of the names and of the fingerprints of files below `root`."""
    digest = hashlib.sha256()
    for name in sorted(names):
        with LocalSource(root / name) as source:
            digest.update(f"{name}\0{fingerprint(source)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def files_under(
    root: Path, *, skip: frozenset[str] = frozenset(), prefix: str = ""
) -> Iterator[tuple[str, os.stat_result]]:
    """Relative name and status of everything below `root` that is no directory, sorted.

    Symlinks are reported, not followed; `skip` leaves out names of the top.
    """
    try:
        with os.scandir(root) as entries:
            children = sorted(entries, key=lambda entry: entry.name)
        statuses = [child.stat(follow_symlinks=False) for child in children]
    except OSError as failure:
        raise unreadable(failure, root, printable(str(root))) from failure
    for child, status in zip(children, statuses, strict=True):
        if child.name in skip:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from files_under(root / child.name, prefix=f"{prefix}{child.name}/")
        else:
            yield prefix + child.name, status


def _check_accounted(placement: Placement) -> None:
    known = _accounted(placement.out)
    skip = OURS if placement.in_place else frozenset()
    for name, status in files_under(placement.out, skip=skip):
        size = known.get(name, -1)
        if not stat.S_ISREG(status.st_mode) or size not in {None, status.st_size}:
            what = f"holds {printable(name)!r}, which {_why_unaccounted(status.st_size, size)}"
            hint = "move what is yours elsewhere, or choose another name"
            raise _refusal(placement.out, what, hint)


def _why_unaccounted(size: int, listed: int | None) -> str:
    if listed is None or listed < 0 or listed == size:
        return "no adaptool receipt accounts for"
    return f"was changed since adaptool wrote it: {size} bytes, {listed} in the receipt"


def _accounted(out: Path) -> dict[str, int | None]:
    """Names and sizes that the receipt in `out` lists; None for a size that it does not give."""
    listed = receipt_outputs(out)
    if listed is None:
        return {}
    known: dict[str, int | None] = {
        row["name"]: row["bytes"] for row in listed if type(row.get("bytes")) is int
    }
    return known | dict.fromkeys(SIDECARS)


def _is_empty(placement: Placement) -> bool:
    skip = OURS if placement.in_place else frozenset()
    try:
        return not set(os.listdir(placement.out)) - skip
    except OSError as failure:
        raise unreadable(failure, placement.out, printable(str(placement.out))) from failure


def _kind(path: Path) -> int | None:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        raise unreadable(failure, path, printable(str(path))) from failure


def _refusal(out: Path, what: str, hint: str) -> OutputError:
    return OutputError(what, code=Code.OUTPUT_EXISTS, file=printable(str(out)), hint=hint)
