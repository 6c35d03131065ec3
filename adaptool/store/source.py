"""Where bytes are read from."""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """A readable run of bytes that does not change: a local file, later a remote one."""

    @property
    def name(self) -> str:
        """What messages call it: the path as the user wrote it, or a URI."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; IntegrityError where the source became shorter."""
        ...

    def close(self) -> None:
        """Let go of the handle."""
        ...


def check_unchanged(source: Source) -> None:
    """IntegrityError where what it reads changed; a source that cannot tell says nothing."""
    check = getattr(source, "check_unchanged", None)
    if check is not None:
        check()
