"""A base's tensors as they come back: predicted, corrected block by block, and checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adaptool.engine.arithmetic import available_cores
from adaptool.engine.blocks import content, cuts, restored
from adaptool.engine.outlets import FileOutlet, Outlet
from adaptool.engine.remembered import Remembered
from adaptool.engine.tiles import CopyJob
from adaptool.errors import IntegrityError
from adaptool.findings import Code
from adaptool.model.plan import Row
from adaptool.model.receipt import OutputEntry
from adaptool.store.sidecar import Way, digest, read_stream
from adaptool.store.sink import Sink
from adaptool.store.source import Source
from adaptool.store.stage import Stage
from adaptool.store.tensors import TensorRef

_CORRECTED = frozenset({Way.SUBTRACTED, Way.BESIDE})


def check_blocks(memory: Remembered, sidecar: Source, threads: int | None) -> None:
    """Every block that will be read, of the merged model and of the sidecar, against its digest.

    IntegrityError (exit 9) names the tensor that is not what the merge wrote.
    """
    workers = threads or available_cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="adaptool-check") as pool:
        jobs = [
            pool.submit(_check_tensor, memory, ref, sidecar) for ref in memory.base.tensors.values()
        ]
        for job in jobs:
            job.result()


def _check_tensor(memory: Remembered, base: TensorRef, sidecar: Source) -> None:
    merged, kept = memory.merged.get(base.name), memory.kept[base.name]
    for (block, at), cut in zip(kept.placed, cuts(base, merged), strict=True):
        if merged is not None and cut.merged is not None:
            _check_block(merged, cut.merged, block.merged)
        if block.length:
            read_stream(sidecar, at, block.length, block.stream)


def _check_block(merged: TensorRef, span: tuple[int, int], check: str) -> None:
    if digest(content(merged, span)) != check:
        message = f"bytes {span[0]} to {span[1]} are not what the merge wrote"
        hint = "restore the file from where it was merged, or merge again"
        raise IntegrityError(
            message, code=Code.INTEGRITY, file=merged.file, tensor=merged.name, hint=hint
        )


class Restoring:
    """What an exact unmerge does besides: corrects what was computed, before a file is finished."""

    def __init__(self, memory: Remembered, sidecar: Source) -> None:
        """`sidecar` holds the corrections."""
        self._memory, self._sidecar = memory, sidecar

    def outlet(self, files: FileOutlet, sinks: Mapping[str, Sink], folder: Path) -> Outlet:
        """The files, with predictions corrected in place."""
        del folder
        return _RestoringOutlet(files, sinks, self._memory, self._sidecar)

    def finish(self, stage: Stage) -> Sequence[OutputEntry]:
        """No further files."""
        del stage
        return ()

    def close(self) -> None:
        """Nothing is open."""


class _RestoringOutlet:
    """Places what is computed, and corrects a tensor once all of it is there."""

    def __init__(
        self, files: FileOutlet, sinks: Mapping[str, Sink], memory: Remembered, sidecar: Source
    ) -> None:
        self._files, self._sinks = files, sinks
        self._memory, self._sidecar = memory, sidecar
        self._lock = threading.Lock()
        self._placed: dict[str, int] = {}

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """A tile of a prediction."""
        self._sinks[row.file].write(row.offset + start, content)
        self._count(row, len(content))

    def copy(self, job: CopyJob) -> None:
        """A run of bytes; those of tensors that are corrected count when they are right."""
        self._sinks[job.file].copy_from(job.source, job.source_offset, job.offset, job.length)
        counted = 0
        for row in job.rows:
            begin = max(job.offset, row.offset)
            end = min(job.offset + job.length, row.offset + row.length)
            if end > begin and self._memory.kept[row.name].way in _CORRECTED:
                self._count(row, end - begin)
                counted += end - begin
        if counted < job.length:
            self._files.count(job.file, job.length - counted)

    def _count(self, row: Row, length: int) -> None:
        with self._lock:
            self._placed[row.name] = self._placed.get(row.name, 0) + length
            whole = self._placed[row.name] == row.length
        if whole:
            self._correct(row)
            self._files.count(row.file, row.length)

    def _correct(self, row: Row) -> None:
        base, merged = self._memory.base.tensors[row.name], self._memory.merged[row.name]
        sink, alike = self._sinks[row.file], merged.dtype == base.dtype
        kept = self._memory.kept[row.name]
        for (block, at), cut in zip(kept.placed, cuts(base, merged), strict=True):
            predicted = bytearray(cut.size)
            sink.read_into(row.offset + cut.base[0], memoryview(predicted))
            theirs = content(merged, cut.merged or (0, 0))
            stream = read_stream(self._sidecar, at, block.length, block.stream)
            found = restored(block.coding, stream, predicted, theirs, base.dtype, alike=alike)
            if found is None or len(found) != cut.size or digest(found) != block.base:
                raise _unlike(row, cut.base)
            if found != predicted:
                sink.write(row.offset + cut.base[0], memoryview(found))


def _unlike(row: Row, span: tuple[int, int]) -> IntegrityError:
    message = f"bytes {span[0]} to {span[1]} would not be the base's"
    hint = "the adapter, or the version of adaptool or torch, is not that of the merge"
    return IntegrityError(message, code=Code.INTEGRITY, file=row.file, tensor=row.name, hint=hint)


def sidecar_refs(memory: Remembered, sidecar: Source) -> Iterator[TensorRef]:
    """The tensors that the sidecar holds whole, as they lie in it."""
    for base in memory.base.tensors.values():
        kept = memory.kept[base.name]
        if kept.way is Way.STORED:
            yield TensorRef(base.name, base.dtype, base.shape, kept.offset, base.length, sidecar)
