"""Text at the end of a file that others write to as well, such as the summary of a CI job."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from adaptool.errors import OutputError
from adaptool.findings import Code
from adaptool.store.disk import Disk
from adaptool.store.safe_names import printable

_HEAD_BYTES = 4096
_ARTIFACTS = frozenset({".json", ".safetensors", ".st", ".gguf", ".bin", ".pt", ".yaml", ".yml"})
_ANOTHER = "name a Markdown file, or one that does not exist yet"


def check_appendable(file: Path, disk: Disk) -> None:
    """OutputError (exit 5) where no text can be, or should be, added to `file`; changes nothing.

    A file that holds something and is of an artifact or a recipe, or no text, is refused: adding
    to it would break it.
    """
    name, home = printable(str(file)), file.absolute().parent
    if not home.is_dir():
        message, hint = f"{printable(str(home))} is no directory", "make it first (mkdir -p)"
        raise OutputError(message, code=Code.OUTPUT_PARENT_MISSING, file=name, hint=hint)
    try:
        status = os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        writable = disk.writable(home)
    else:
        _check_kind(file, status)
        writable = os.access(file, os.W_OK)
    if not writable:
        message, hint = "cannot be written", "choose another place, or change its permissions"
        raise OutputError(message, code=Code.OUTPUT_NOT_WRITABLE, file=name, hint=hint)


def append_text(file: Path, text: str, disk: Disk) -> None:
    """Add `text` to `file`, which is made where there is none; UTF-8.

    OutputError as in `check_appendable` and where the disk fails; `file` is then as it was.
    """
    check_appendable(file, disk)
    opened = disk.open_or_create(file)
    try:
        end = os.fstat(opened.fd).st_size
        try:
            disk.write_all(opened, memoryview(text.encode(errors="replace")), end)
        except OutputError:
            with suppress(OutputError):
                disk.truncate(opened, end)
            raise
    finally:
        disk.close(opened)


def _check_kind(file: Path, status: os.stat_result) -> None:
    what = None
    if not stat.S_ISREG(status.st_mode):
        what = "is no file" if not stat.S_ISLNK(status.st_mode) else "is a symbolic link"
    elif status.st_size and (file.suffix.lower() in _ARTIFACTS or _is_binary(file)):
        what = "is not Markdown: adding to it would break it"
    if what is not None:
        name = printable(str(file))
        raise OutputError(what, code=Code.OUTPUT_EXISTS, file=name, hint=_ANOTHER)


def _is_binary(file: Path) -> bool:
    try:
        with open(file, "rb") as content:
            return b"\0" in content.read(_HEAD_BYTES)
    except OSError:
        return False  # opening it for writing will say why
