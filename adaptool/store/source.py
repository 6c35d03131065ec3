"""Where bytes are read from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable


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


Opener = Callable[[Path], Source]
"""How a weights file is opened: as a local one, or as what a placeholder stands for."""


@runtime_checkable
class Visiting(Protocol):
    """A source that is brought here for a while: a shard of a model that lies elsewhere."""

    def arrive(self) -> None:
        """Bring all of it here, whatever it takes; does nothing where it is here.

        Called from another thread than the readers', and again after `leave`.
        """
        ...

    def leave(self) -> None:
        """Give its room back; an arrival that is under way in another thread is broken off."""
        ...


@runtime_checkable
class Layered(Protocol):
    """A source whose bytes are made of others'."""

    def beneath(self) -> Iterable[Source]:
        """The sources that it reads."""
        ...


def visited(source: Source) -> Iterable[Visiting]:
    """The sources, itself or beneath it, that must be brought here before it can be read."""
    if isinstance(source, Visiting):
        yield source
    elif isinstance(source, Layered):
        for each in source.beneath():
            yield from visited(each)


def check_unchanged(source: Source) -> None:
    """IntegrityError where what it reads changed; a source that cannot tell says nothing."""
    check = getattr(source, "check_unchanged", None)
    if check is not None:
        check()
