"""An output that is sent while it is made: large files leave the disk, one commit names them all.

    with Outbox(goal, PassingFiles(folder, Disk()), "Merge", card=None) as outbox:
        sink = outbox.sink("model-00001-of-00002.safetensors", size)
        ...
        outbox.finished(sink)  # uploaded, and gone from the disk
        outbox.commit()

Before `commit` nothing of it can be seen in the repository: what was uploaded is content that no
name leads to. Run again, the server says what it has already, and that is not sent twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Self

from adaptool.errands import Errands
from adaptool.findings import Finding
from adaptool.remote.hub import patiently
from adaptool.remote.outgoing import Outgoing, digested
from adaptool.remote.upload import Pushed, Target, Upload
from adaptool.store.local import LocalSource
from adaptool.store.model_card import CARD_FILE
from adaptool.store.passing_files import PassingFiles
from adaptool.store.sink import FileSink
from adaptool.store.weight_files import WEIGHTS_SUFFIX

Card = Callable[[Path], str]
"""The model card of what was sent, from the directory that the small files still lie in."""

_POLL_SECONDS = 0.1
_LARGE = 1 << 20  # bytes; a smaller file that is no weights waits for the commit


class Outbox:
    """A stage (`store.stage.Stage`) whose output becomes a commit on the Hub.

    Weights and whatever is large are digested, uploaded and removed when they are finished; small
    files wait for `commit`, which writes the card (None: none) and makes the one commit, `pushed`.
    RemoteError (exit 6), where the Hub refuses or the branch moved, leaves the branch as it was.
    """

    __slots__ = (
        "_broken",
        "_card",
        "_errands",
        "_files",
        "_message",
        "_place",
        "_sent",
        "_upload",
        "pushed",
    )

    def __init__(
        self, goal: Target, files: PassingFiles, message: str, *, card: Card | None
    ) -> None:
        self._broken = threading.Event()
        self._errands = Errands[bool]("adaptool-upload")
        self._place = goal.origin.place
        self._upload = Upload(goal)
        self._files = files
        self._message = message
        self._card = card
        self._sent: dict[str, Outgoing] = {}
        self.pushed: Pushed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._errands.close()
        self._upload.close()
        self._files.close()

    @property
    def hands_over(self) -> bool:
        """Yes: a finished file is uploaded, and its room is free."""
        return True

    @property
    def folder(self) -> Path:
        """The passing directory, for working files."""
        return self._files.folder.parent

    @property
    def payload(self) -> Path:
        """The directory that holds what is not sent yet."""
        return self._files.folder

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Nothing is to be said."""
        return ()

    def sink(self, name: str, size: int) -> FileSink:
        """The file `name` (relative, forward slashes) of the output, `size` bytes."""
        return self._files.sink(name, size)

    def finished(self, sink: FileSink) -> None:
        """The file has all its bytes: upload it if it is large, keep it for the commit if not."""
        if self._broken.is_set():
            return
        sink.finish()
        with LocalSource(self._files.path(sink.name)) as source:
            file = digested(sink.name, source)
        self._sent[file.name] = file
        if not _is_large(file):
            self._upload.add(file)
        elif self._departed(file):
            self._files.drop(file.name)

    def break_off(self) -> None:
        """There will be no commit: an upload in another thread is not waited for."""
        self._broken.set()

    def digest(self, name: str) -> str:
        """sha256 of a finished file, in hexadecimal."""
        return self._sent[name].sha256

    def commit(self) -> None:
        """Make the one commit, on top of the one that was seen before the first byte."""
        if self._card is not None:
            self._upload.add(Outgoing.made(CARD_FILE, self._card(self.payload).encode()))
        self.pushed = self._upload.commit(self._message)

    def _departed(self, file: Outgoing) -> bool:
        """Upload the file, whether it may be removed; False at once where all is broken off."""
        # The work of hours is behind this: what may pass is waited for.
        sent = self._errands.send(lambda: patiently(lambda: self._upload.send(file), self._place))
        while not (sent.done() or self._broken.is_set()):
            wait([sent], _POLL_SECONDS)
        return sent.done() and sent.result()


def _is_large(file: Outgoing) -> bool:
    return file.size >= _LARGE or file.name.endswith(WEIGHTS_SUFFIX)
