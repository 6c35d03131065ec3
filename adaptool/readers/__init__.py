"""One file per layout: how the program that loads a written adapter reads it.

A reader's file is named after the layout and states facts about one release of that program, read
in its source; it shares no code with the layout's encoder. Whatever is written is read so before
the first byte is on disk, and compared with the adapter that was meant (`comparing.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol, cast

from adaptool.discovery import marked
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Encoded
from adaptool.model.reading import BaseNames
from adaptool.readers.comparing import compare
from adaptool.readers.values import Applied, File, Loaded, Refusal

__all__ = ["Applied", "File", "Loaded", "Reader", "Refusal", "check", "readers"]


class Reader(Protocol):
    """What a reader's file offers. `PROGRAM` is whose rules these are, with the release."""

    PROGRAM: str

    def read(self, file: File) -> Loaded:
        """What the program would do with the file."""
        ...


@functools.cache
def readers() -> Mapping[str, Reader]:
    """Every reader by the layout's name: the modules of this package that have a PROGRAM."""
    return cast("Mapping[str, Reader]", marked(__name__, __path__, "PROGRAM"))


def check(adapter: Adapter, layout: str, encoded: Encoded, base: BaseNames | None) -> None:
    """Compare what the layout's reader would apply with the adapter that was encoded.

    MismatchError (exit 4) where the program cannot load it so; InternalError (exit 70), carrying
    every other difference, where it would apply anything else than the adapter.
    """
    reader = readers().get(layout)
    if reader is None:
        return
    parameters = [delta.parameter for delta in adapter.deltas]
    parameters += [item.parameter for item in adapter.replaced]
    loaded = reader.read(File.of(encoded, base, frozenset(parameters)))
    compare(adapter, loaded, encoded, reader.PROGRAM)
