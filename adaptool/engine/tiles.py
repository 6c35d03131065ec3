"""Work cut to size: tiles that stay in a cache, jobs that a thread takes, ranges to copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from adaptool.model.plan import Recoded, Row
from adaptool.model.quantizer import Packed
from adaptool.store.source import Source

# About 1 MB of float32: the fastest of 256 KB, 1 MB and 4 MB with and without a second worker.
TILE_ELEMENTS = 256 * 1024
JOB_ELEMENTS = 8 * 1024 * 1024
COPY_BYTES = 32 * 1024 * 1024
HEIGHT_STEP = 16
# What an observing tuner sees at once: fixed, so that its sums do not depend on the tile size.
OBSERVED_ELEMENTS = 256 * 1024


@dataclass(frozen=True, slots=True)
class FillJob:
    """Rows [start, stop) of one row's matrix, to be computed."""

    row: Row
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RecodeJob:
    """A packed weight to be stored anew: its plain values, and the rows of its parts by role."""

    row: Row
    packed: Packed
    parts: Mapping[str, Row]

    @property
    def length(self) -> int:
        """Bytes of all parts."""
        return sum(part.length for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class CopyJob:
    """A run of bytes that goes from a source to a file as it is."""

    file: str
    source: Source
    source_offset: int
    offset: int
    length: int
    rows: tuple[Row, ...]


def tile_height(columns: int, elements: int = TILE_ELEMENTS) -> int:
    """Rows of a tile: the multiple of 16 nearest to `elements`, where it holds that many rows."""
    height = max(1, elements // max(1, columns))
    if height <= HEIGHT_STEP:
        return height
    return (height + HEIGHT_STEP // 2) // HEIGHT_STEP * HEIGHT_STEP


def tiles(start: int, stop: int, height: int) -> Iterator[tuple[int, int]]:
    """Row ranges of at most `height` + 1 rows; no tile of a single row but where there is one.

    float32 products of one row take another path in the BLAS, so a lone last row joins its
    neighbour.
    """
    while start < stop:
        end = min(start + height, stop)
        if stop - end == 1 and height > 1:
            end = stop
        yield start, end
        start = end


def fill_jobs(rows: Iterable[Row], elements: int = TILE_ELEMENTS) -> Iterator[FillJob]:
    """Jobs for every row that is no plain copy, each a whole number of tiles."""
    for row in rows:
        if row.is_copy or row.recoded is not None:
            continue
        count, columns = row.matrix
        height = tile_height(columns, elements)
        step = max(height, JOB_ELEMENTS // max(1, columns) // height * height)
        for start, stop in tiles(0, count, step):
            yield FillJob(row, start, stop)


def recode_jobs(rows: Iterable[Row]) -> Iterator[RecodeJob]:
    """One job for every packed weight that is stored anew: its scales are of all its values."""
    parts: dict[str, dict[str, Row]] = {}
    known: dict[str, Recoded] = {}
    for row in rows:
        if row.recoded is not None:
            known[row.recoded.plain.name] = row.recoded
            parts.setdefault(row.recoded.plain.name, {})[row.recoded.role] = row
    for name, recoded in known.items():
        yield RecodeJob(recoded.plain, recoded.packed, parts[name])


def copy_jobs(rows: Iterable[Row]) -> Iterator[CopyJob]:
    """Neighbouring rows that are plain copies, joined, then cut to 32 MiB."""
    run: list[Row] = []
    for row in rows:
        if not row.is_copy or not row.length:
            continue
        if run and not _adjoins(run[-1], row):
            yield from _cut(run)
            run = []
        run.append(row)
    if run:
        yield from _cut(run)


def _adjoins(left: Row, right: Row) -> bool:
    return (
        left.file == right.file
        and left.offset + left.length == right.offset
        and left.source.source is right.source.source
        and left.source.offset + left.length == right.source.offset
    )


def _cut(run: list[Row]) -> Iterator[CopyJob]:
    first = run[0]
    total = sum(row.length for row in run)
    for done in range(0, total, COPY_BYTES):
        yield CopyJob(
            file=first.file,
            source=first.source.source,
            source_offset=first.source.offset + done,
            offset=first.offset + done,
            length=min(COPY_BYTES, total - done),
            rows=tuple(run),
        )
