"""Where a run keeps what it has not published yet."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from adaptool.store.disk import Disk

IN_PLACE_PARTIAL = ".adaptool-partial"
IN_PLACE_LOCK = ".adaptool.lock"
# Our own names in an OUT that holds its staging directory; nobody's files.
OURS = frozenset({IN_PLACE_PARTIAL, IN_PLACE_LOCK})
# A longer name would not leave room for what is put around it (255 bytes is the usual limit).
_LONGEST_NAME = 200
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Placement:
    """The paths of one output.

    `out` is the destination, symlinks resolved; `home` the directory that holds `partial` (the
    staging directory) and `lock`. `in_place` says that OUT itself is `home`, because it cannot be
    renamed: it is a mount point, or its parent is not writable. In `partial` a run works in a
    directory of its own, named by its `token`: who takes an output over renames that directory,
    and whatever the run before it still does finds nothing to publish.
    """

    out: Path
    home: Path
    partial: Path
    lock: Path
    in_place: bool
    single_file: bool
    token: str = ""

    @property
    def work(self) -> Path:
        """The directory of the run that has the token; without one, that of an earlier run."""
        if self.token:
            return self.partial / self.token
        return next(iter(self.left()), self.partial / "none")

    def left(self) -> list[Path]:
        """The directories in which runs worked that may have ended."""
        try:
            names = sorted(os.listdir(self.partial))
        except OSError:
            return []
        return [self.partial / name for name in names if _TOKEN.fullmatch(name)]

    @property
    def payload(self) -> Path:
        """The directory that holds the output files until they are published."""
        return self.work / "out"

    @property
    def aside(self) -> Path:
        """Where the old output waits, on file systems that cannot swap two names."""
        return self.work / "old"

    @property
    def journal(self) -> Path:
        """The file that says what is staged."""
        return self.work / "journal.json"

    @property
    def staged(self) -> Path:
        """What becomes OUT: the payload directory, or the one file in it."""
        return self.payload / self.out.name if self.single_file else self.payload


def place(out: Path, disk: Disk, *, single_file: bool = False) -> Placement:
    """Decide where to stage; reads the file system, changes nothing."""
    real = Path(os.path.realpath(out))
    if not single_file and real.is_dir() and _is_fixed(real, disk):
        partial, lock = real / IN_PLACE_PARTIAL, real / IN_PLACE_LOCK
        return Placement(real, real, partial, lock, in_place=True, single_file=False)
    name = _short(real.name)
    partial = real.parent / f".{name}.adaptool-partial"
    lock = real.parent / f".{name}.adaptool.lock"
    return Placement(real, real.parent, partial, lock, in_place=False, single_file=single_file)


def _is_fixed(out: Path, disk: Disk) -> bool:
    return disk.is_mount_point(out) or not disk.writable(out.parent)


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(encoded).hexdigest()[:32]
