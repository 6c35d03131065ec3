"""A repository's artifact as a directory: its documents for real, its weights as hollow files.

Listing it and asking for sizes gives what a whole download would give. Who reads a hollow file as
a local one finds zeros, which no header and no JSON begins with, so it is refused, never believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adaptool.errands import Errands
from adaptool.remote.arrivals import HubSource
from adaptool.remote.cached import is_offline
from adaptool.remote.download import fetch, in_cache
from adaptool.remote.hub import Origin, RemoteFile
from adaptool.remote.ranges import AT_ONCE, Parts, Ranges
from adaptool.remote.selection import Wanted
from adaptool.remote.survey import Survey
from adaptool.store.adapter_files import CONFIG_FILE as ADAPTER_CONFIG
from adaptool.store.checkpoint import CONFIG_FILE, LARGEST_INDEX_BYTES
from adaptool.store.disk import Disk
from adaptool.store.local import LocalSource
from adaptool.store.own_files import RECEIPT, SIDECARS
from adaptool.store.passing import check_passing_room, put_hollow
from adaptool.store.safe_names import printable
from adaptool.store.sink import FileSink
from adaptool.store.source import Source
from adaptool.store.weight_files import INDEX_SUFFIX, WEIGHTS_SUFFIX

_WEIGHTS = (WEIGHTS_SUFFIX, ".st")
# What inspect, validate and a plan read besides headers.
_DECIDING = frozenset({ADAPTER_CONFIG, CONFIG_FILE, "added_tokens.json"})


@dataclass(frozen=True, slots=True)
class Rooms:
    """Two empty directories that pass: for the mirror, and for weights while they are here."""

    mirror: Path
    arrivals: Path


def can_be_mirrored(found: Survey) -> bool:
    """Whether all weights are safetensors files, whose headers can be read alone."""
    names = [each.name for each in found.wanted]
    others = (".gguf", ".bin", ".pt", ".pth")
    return any(map(_is_weights, names)) and not any(name.endswith(others) for name in names)


def mirrored(
    found: Survey, rooms: Rooms, disk: Disk, *, streamed: bool
) -> Mapping[Path, Callable[[], Source]]:
    """Fill `rooms.mirror`; how to open each weights file in it, by its path.

    What is `streamed` has all its documents, else only those that decide what the artifact is; the
    others are hollow, too. Errors as `fetch`.
    """
    parts: dict[str, Parts] = {}
    for each in found.wanted:
        path = rooms.mirror / each.name
        if _is_weights(each.name):
            parts[each.name] = _parts(found.origin, each.file, path, streamed=streamed)
        elif _is_needed(each, streamed=streamed):
            _put(found.origin, each.file, path, disk)
            continue
        if each.name == RECEIPT:
            continue  # a receipt of what it was made of; where it comes from is said anew
        put_hollow(disk, path, each.file.size)
    with Errands[None]("adaptool-headers", AT_ONCE) as errands:
        for begun in [errands.send(each.begin) for each in parts.values()]:
            begun.result()
    return {
        rooms.mirror / each.name: partial(
            HubSource, found.origin, each.file, parts[each.name], rooms.arrivals / each.name, disk
        )
        for each in found.wanted
        if each.name in parts
    }


def check_room(found: Survey, disk: Disk) -> None:
    """OutputError (exit 5) where the two largest weights files that must come have no room."""
    missing = (
        each.file.size
        for each in found.wanted
        if _is_weights(each.name) and in_cache(found.origin, each.file) is None
    )
    check_passing_room(sum(sorted(missing)[-2:]), disk, "two weights files of the base")


def _is_weights(name: str) -> bool:
    return name.endswith(_WEIGHTS)


def _is_needed(document: Wanted, *, streamed: bool) -> bool:
    """Whether it is read, or copied; what is larger than any document is refused by its size."""
    name = document.name
    if name in SIDECARS:
        return False
    decides = name in _DECIDING or name.endswith(INDEX_SUFFIX)
    return streamed or (decides and document.file.size <= LARGEST_INDEX_BYTES)


def _parts(origin: Origin, file: RemoteFile, path: Path, *, streamed: bool) -> Parts:
    """Parts of the file, from the client's cache where that holds it.

    A merge is planned by what the Hub says, where it can be asked: a cache may be damaged.
    """
    cached = None if streamed and not is_offline() else in_cache(origin, file)
    ask = Ranges(origin, file) if cached is None else partial(_local_part, cached)
    return Parts(printable(str(path)), file.size, ask)


def _local_part(path: Path, start: int, stop: int) -> bytes:
    with LocalSource(path) as source:
        return source.read(start, stop - start)


def _put(origin: Origin, file: RemoteFile, path: Path, disk: Disk) -> None:
    sink = FileSink.open(disk, path, path.name, file.size)
    try:
        fetch(origin, file, sink, lambda _: None)
    finally:
        sink.abandon()
