"""One file written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from adaptool.errors import OutputError
from adaptool.findings import Code
from adaptool.store.digest import digest_of_bytes
from adaptool.store.disk import Disk
from adaptool.store.placement import place
from adaptool.store.safe_names import printable
from adaptool.store.staging import Staging


def refuse_directory(out: Path) -> None:
    """OutputError (exit 5) where a directory lies at `out`, whatever may be overwritten."""
    if out.is_dir():
        message, hint = "is a directory; a file is to be written", "name a file in it"
        raise OutputError(message, code=Code.OUTPUT_EXISTS, file=printable(str(out)), hint=hint)


def write_file(out: Path, content: bytes, disk: Disk, *, overwrite: bool) -> None:
    """Write `content` to `out`: staged beside it, flushed, renamed.

    OutputError (exit 5) where something lies at `out` and may not be overwritten, BusyError where
    another run writes it; `out` is then as it was.
    """
    refuse_directory(out)
    plan = digest_of_bytes(content)
    with Staging.open(out, plan, disk, overwrite=overwrite, single_file=True) as staging:
        if not staging.published:
            staging.put(place(out, disk, single_file=True).out.name, content)
        staging.commit()
