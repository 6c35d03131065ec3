"""The journal of a staging directory: for which plan it is, and what in it is durable.

The journal is advice for the report (k of n files done) and a guard against mixing two plans; that
the bytes are right is checked by comparing, never by believing the journal.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.store.disk import Disk

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Moves:
    """A publication file by file: `stale` old files to remove, `order` of the new ones."""

    stale: tuple[str, ...]
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Journal:
    """What a staging directory holds.

    `plan` is the digest of the plan, `done` maps durable files to their size in bytes, `moves` is
    there once a publication file by file has begun.
    """

    plan: str
    done: Mapping[str, int]
    moves: Moves | None = None


def read_journal(path: Path) -> Journal | None:
    """The journal at `path`; None where there is none that can be understood."""
    record = read_record(path)
    if record is None or record.get("format") != FORMAT or not isinstance(record.get("plan"), str):
        return None
    done = sizes(record.get("done"))
    if done is None:
        return None
    return Journal(record["plan"], done, _moves(record.get("moves")))


def write_journal(journal: Journal, path: Path, disk: Disk) -> None:
    """Replace the journal in one step, durably."""
    record: dict[str, Any] = {"format": FORMAT, "plan": journal.plan, "done": dict(journal.done)}
    if journal.moves is not None:
        record["moves"] = {"stale": journal.moves.stale, "order": journal.moves.order}
    fresh = path.with_name(path.name + ".tmp")
    disk.unlink(fresh)
    file = disk.open_or_create(fresh)
    try:
        disk.write_all(file, memoryview(encode_record(record)), 0)
        disk.fsync(file)
    finally:
        disk.close(file)
    disk.rename(fresh, path)
    disk.fsync_directory(path.parent)


def encode_record(record: Mapping[str, object]) -> bytes:
    """A record as one line of JSON in ASCII, which holds any file name."""
    return json.dumps(record, sort_keys=True).encode("ascii") + b"\n"


def read_record(path: Path) -> dict[str, Any] | None:
    """The JSON object in a regular file; None for anything else, or where nothing lies there."""
    return parse_record(read_regular(path))


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; none where there is no such file or it cannot be read."""
    try:
        return path.read_bytes() if stat.S_ISREG(os.lstat(path).st_mode) else b""
    except OSError:
        return b""


def parse_record(text: bytes) -> dict[str, Any] | None:
    """The JSON object that `text` is; None where it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def sizes(value: object) -> dict[str, int] | None:
    """`value` where it maps names to sizes, else None."""
    if isinstance(value, dict) and all(type(size) is int for size in value.values()):
        return value
    return None


def _moves(value: object) -> Moves | None:
    if not isinstance(value, dict):
        return None
    stale, order = value.get("stale"), value.get("order")
    if not isinstance(stale, list) or not isinstance(order, list):
        return None
    return Moves(tuple(map(str, stale)), tuple(map(str, order)))
