"""A directory that is there for a while."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from adaptool.errors import OutputError
from adaptool.findings import Code
from adaptool.store.safe_names import printable


def passing_directory(stack: ExitStack, name: str) -> Path:
    """An empty directory called `name`, in the machine's place for such; removed with `stack`.

    OutputError (exit 5) where none can be made.
    """
    try:
        room = stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptool-"))
        inner = Path(room, name)
        inner.mkdir()
    except OSError as error:
        message = f"no temporary directory can be made: {os.strerror(error.errno or 0)}"
        file = printable(tempfile.gettempdir())
        hint = "set TMPDIR to a directory with room"
        raise OutputError(message, code=Code.WRITE_FAILED, file=file, hint=hint) from error
    return inner
