"""What tests of unmerge share: how a restored base is compared with the one that was merged."""

from __future__ import annotations

from pathlib import Path


def lost(base: Path, out: Path) -> list[str]:
    """The base's files that `out` has not, or not so."""
    files = [file for file in sorted(base.rglob("*")) if file.is_file()]
    names = [str(file.relative_to(base)) for file in files if file.name != "README.md"]
    return [
        name
        for name in names
        if not (out / name).exists() or (out / name).read_bytes() != (base / name).read_bytes()
    ]
