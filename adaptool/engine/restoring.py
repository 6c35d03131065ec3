"""A base's tensors as they come back: predicted, corrected block by block, and checked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adaptool.engine.arithmetic import available_cores
from adaptool.engine.blocks import cuts, digested, restored
from adaptool.engine.codec import Bytes
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
    if digested(merged, span) != check:
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


class _Rooms:
    """Buffers that are used again: new memory costs more than what is done with it."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque()

    def take(self, size: int) -> bytearray:
        """At least `size` bytes, whatever they hold."""
        try:
            room = self._free.pop()
        except IndexError:
            return bytearray(size)
        return room if len(room) >= size else bytearray(size)

    def give(self, room: bytearray) -> None:
        """It is not used any more."""
        self._free.append(room)


class _Block:
    """A block whose prediction is being put together, in `room`."""

    def __init__(self, room: bytearray, size: int) -> None:
        self.room, self.content = room, memoryview(room)[:size]
        self.missing = size


class _Tensor:
    """A tensor that comes back: its blocks, and those of them that are being put together."""

    def __init__(self, memory: Remembered, name: str) -> None:
        self.base, self.merged = memory.base.tensors[name], memory.merged[name]
        kept = memory.kept[name]
        self.blocks = list(zip(kept.placed, cuts(self.base, self.merged), strict=True))
        self.step = self.blocks[0][1].size
        self.open: dict[int, _Block] = {}


class _RestoringOutlet:
    """Corrects a block once its whole prediction is there, and writes it.

    What is copied and corrected is placed first: its blocks are corrected where they lie.
    """

    def __init__(
        self, files: FileOutlet, sinks: Mapping[str, Sink], memory: Remembered, sidecar: Source
    ) -> None:
        self._files, self._sinks = files, sinks
        self._memory, self._sidecar = memory, sidecar
        self._lock = threading.Lock()
        self._tensors: dict[str, _Tensor] = {}
        self._rooms = _Rooms()
        self._placed: dict[str, int] = {}

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """A tile of a prediction."""
        with self._lock:
            if row.name not in self._tensors:
                self._tensors[row.name] = _Tensor(self._memory, row.name)
            tensor = self._tensors[row.name]
        stop = start + len(content)
        for place in range(start // tensor.step, -(-stop // tensor.step)):
            begin = place * tensor.step
            first, last = max(start, begin), min(stop, begin + tensor.step)
            block = self._opened(tensor, place)
            block.content[first - begin : last - begin] = content[first - start : last - start]
            with self._lock:
                block.missing -= last - first
                whole = not block.missing
            if whole:
                self._place(row, tensor, place, block)

    def _opened(self, tensor: _Tensor, place: int) -> _Block:
        with self._lock:
            found = tensor.open.get(place)
            if found is None:
                _, cut = tensor.blocks[place]
                found = tensor.open[place] = _Block(self._rooms.take(tensor.step), cut.size)
            return found

    def _place(self, row: Row, tensor: _Tensor, place: int, block: _Block) -> None:
        """A whole prediction, corrected and written."""
        found, start = self._corrected(row, tensor, place, block.content)
        self._sinks[row.file].write(row.offset + start, memoryview(found))
        with self._lock:
            del tensor.open[place]
        self._rooms.give(block.room)
        self._files.count(row.file, len(found))

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
        """Once all of a tensor is copied, it is corrected where it lies."""
        with self._lock:
            self._placed[row.name] = self._placed.get(row.name, 0) + length
            if self._placed[row.name] < row.length:
                return
        tensor, sink = _Tensor(self._memory, row.name), self._sinks[row.file]
        for place, (_, cut) in enumerate(tensor.blocks):
            copied = bytearray(cut.size)
            sink.read_into(row.offset + cut.base[0], memoryview(copied))
            found, start = self._corrected(row, tensor, place, copied)
            if found != copied:
                sink.write(row.offset + start, memoryview(found))
        self._files.count(row.file, row.length)

    def _corrected(
        self, row: Row, tensor: _Tensor, place: int, predicted: Bytes
    ) -> tuple[Bytes, int]:
        """The base's bytes of a block, and where in the tensor they begin."""
        (block, at), cut = tensor.blocks[place]
        base, merged = tensor.base, tensor.merged
        stream = read_stream(self._sidecar, at, block.length, block.stream)
        start, stop = cut.merged or (0, 0)
        room = self._rooms.take(stop - start)
        theirs = memoryview(room)[: stop - start]
        merged.source.read_into(merged.offset + start, theirs)
        alike = merged.dtype == base.dtype
        found = restored(block.coding, stream, predicted, theirs, base.dtype, alike=alike)
        self._rooms.give(room)
        if found is None or len(found) != cut.size or digest(found) != block.base:
            raise _unlike(row, cut.base)
        return found, cut.base[0]


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
