"""Folders for outputs that are named before anything stands there."""

from __future__ import annotations

from pathlib import Path

from adaptool.store.disk import Disk


def make_folder_of(out: Path, disk: Disk) -> None:
    """Make the folders above `out` that are missing; OutputError (exit 5) where that fails."""
    missing = [folder for folder in out.parents if not folder.exists()]
    for folder in reversed(missing):
        disk.mkdir(folder)
