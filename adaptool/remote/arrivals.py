"""A remote weights file as a source: parts of it, until all of it is brought here for a while."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Self

from adaptool.errors import InternalError, OutputError, RemoteError
from adaptool.findings import Code
from adaptool.remote.download import fetch, in_cache
from adaptool.remote.hub import Origin, RemoteFile
from adaptool.remote.ranges import Parts
from adaptool.store.digest import sha256_of
from adaptool.store.disk import Disk
from adaptool.store.local import LocalSource
from adaptool.store.passing import put_away
from adaptool.store.sink import FileSink

ROOM = "set TMPDIR to a directory with room for two of the base's weights files"
"""What to do where they do not fit."""


class HubSource:
    """One weights file of a commit.

    Before it arrives only parts of it are read, which its digest cannot vouch for: they are
    compared with the file when it is here, and `check_unchanged` refuses what was never compared.
    """

    __slots__ = (
        "_arriving",
        "_checked",
        "_closed",
        "_disk",
        "_file",
        "_local",
        "_origin",
        "_parts",
        "_place",
        "_read",
        "_wanted",
    )

    def __init__(
        self, origin: Origin, file: RemoteFile, parts: Parts, place: Path, disk: Disk
    ) -> None:
        """`place` is where it goes while it is here; nothing is asked for yet."""
        self._origin, self._file, self._parts = origin, file, parts
        self._place, self._disk = place, disk
        self._local: LocalSource | None = None
        self._arriving = Lock()
        self._wanted = self._read = self._checked = self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._parts.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.size

    @property
    def sha256(self) -> str | None:
        """The commit's own digest of it; None for a file that is not in LFS."""
        return self._file.sha256

    @property
    def fd(self) -> int:
        """The descriptor that the kernel copies from; only while the file is here."""
        if self._local is None:
            raise self._absent()
        return self._local.fd

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; parts that the plan needs come by themselves."""
        if self._local is not None:
            self._local.read_into(offset, buffer)
            return
        if self._checked:  # it has been here and left: who reads now did not ask for it
            raise self._absent()
        self._read = True
        self._parts.read_into(offset, buffer)

    def check_unchanged(self) -> None:
        """InternalError where parts were read and never compared with the file.

        The bytes of a commit do not change.
        """
        if self._read and not self._checked:
            message = "parts of it were read and never checked"
            raise InternalError(message, code=Code.INTERNAL, file=self.name)

    def arrive(self) -> None:
        """Bring all of it here; does nothing where it is.

        RemoteError (exit 6) where it does not come, IntegrityError (exit 9) where it is not the
        commit's file or differs from what was read of it before, OutputError (exit 5) where there
        is no room.
        """
        self._wanted = True
        with self._arriving:
            if self._local is None:
                try:
                    self._bring()
                except BaseException:
                    self._let_go()
                    raise

    def leave(self) -> None:
        """Give its room back; an arrival that is under way breaks off by itself."""
        self._wanted = False
        if self._arriving.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._arriving.release()

    def close(self) -> None:
        """Leave for good: an arrival that begins only now breaks off, too."""
        self._closed = True
        self.leave()

    def _bring(self) -> None:
        local = self._of_cache() or self._downloaded()
        self._local = local
        self._parts.check_against(local)
        self._checked = True
        self._count(0)

    def _of_cache(self) -> LocalSource | None:
        """The file in the client's cache, read in place, where it is the commit's."""
        if self._file.sha256 is None:
            return None
        path = in_cache(self._origin, self._file)
        if path is None:
            return None
        local = LocalSource(path, self.name)
        if sha256_of(local) == self._file.sha256:
            return local
        local.close()
        return None

    def _downloaded(self) -> LocalSource:
        try:
            sink = FileSink.open(self._disk, self._place, self.name, self.size)
            try:
                fetch(self._origin, self._file, sink, self._count)
            finally:
                sink.abandon()  # nobody needs it after a power cut
        except OutputError as error:
            if error.code is Code.DISK_FULL:
                error.hint = ROOM
            raise
        return LocalSource(self._place, self.name)

    def _count(self, _: int) -> None:
        if self._closed or not self._wanted:
            message = "nobody waits for it any more"
            raise RemoteError(message, code=Code.NETWORK, file=self.name)

    def _let_go(self) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None
        put_away(self._disk, self._place)

    def _absent(self) -> InternalError:
        message = "was read while it was not here"
        return InternalError(message, code=Code.INTERNAL, file=self.name)
