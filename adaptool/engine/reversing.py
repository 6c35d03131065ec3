"""A reversible merge's sidecar: every block of the base compared with what its prediction gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.engine.arithmetic import available_cores
from adaptool.engine.blocks import Cut, content, cuts
from adaptool.engine.codec import Bytes
from adaptool.engine.outlets import FileOutlet, Outlet
from adaptool.engine.recording import Coded, MergeWatch, Recorder, SubtractionWatch
from adaptool.engine.run import run
from adaptool.model.options import Machine, Precision
from adaptool.model.plan import Plan, Row
from adaptool.model.receipt import OutputEntry
from adaptool.model.reversal import Restoration, Reversal
from adaptool.store.local import LocalSource
from adaptool.store.sidecar import (
    SIDECAR,
    Block,
    Coding,
    Kept,
    Restored,
    Sidecar,
    Way,
    deflated,
    digest,
)
from adaptool.store.sink import Sink
from adaptool.store.spill import Spill
from adaptool.store.stage import Stage
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

# A sparse stream longer than this share of its block: the block whole may be shorter.
_DENSE = 0.2


class Reversing:
    """What `merge --reversible` does besides: watches the tiles, then writes the sidecar."""

    def __init__(self, reversal: Reversal, machine: Machine, precision: Precision) -> None:
        """`precision` is the merge's own arithmetic; subtraction is always in float64."""
        self._reversal, self._machine = reversal, machine
        subtracted = [one for one in reversal.tensors if one.way is Way.SUBTRACTED]
        inline = precision is Precision.FLOAT64
        self._watched = {one.source: one for one in subtracted if inline and _is_plain_sum(one)}
        self._rest = {one.source: one for one in subtracted if one.source not in self._watched}
        self._watched |= {one.source: one for one in reversal.tensors if one.way is Way.COPIED}
        self._stack = ExitStack()

    def outlet(self, files: FileOutlet, sinks: Mapping[str, Sink], folder: Path) -> Outlet:
        """The merge's files, with an eye on what is written."""
        del sinks
        self._spill = self._stack.enter_context(Spill(folder))
        self._recorder = Recorder(self._watched, self._spill)
        return MergeWatch(files, self._recorder)

    def close(self) -> None:
        """Give the working file back."""
        self._stack.close()

    def finish(self, stage: Stage) -> Sequence[OutputEntry]:
        """Subtract what was not watched, compare every block, write the sidecar."""
        payload = stage.payload
        files = {row.file for one in self._reversal.tensors for row in [one.row] if row is not None}
        sources = {
            name: self._stack.enter_context(LocalSource(payload / name)) for name in sorted(files)
        }
        merged = {
            one.base.name: _merged(row, sources[row.file])
            for one in self._reversal.tensors
            for row in [one.row]
            if row is not None
        }
        seen = {**self._recorder.coded(), **self._subtracted(merged)}
        return [self._write(stage, self._coded(merged, seen))]

    def _subtracted(self, merged: Mapping[str, TensorRef]) -> Mapping[str, Sequence[Coded]]:
        """The blocks of what no tile of the merge told."""
        if not self._rest:
            return {}
        recorder = Recorder(self._rest, self._spill)
        rows = tuple(inverted(one, merged[one.base.name]) for one in self._rest.values())
        bases = {one.source: one.base for one in self._rest.values()}
        plan = Plan(
            tuple(
                replace(row, name=one.source)
                for row, one in zip(rows, self._rest.values(), strict=True)
            ),
            (),
            (),
            Precision.FLOAT64,
        )
        run(plan, SubtractionWatch(recorder, bases), self._machine)
        return recorder.coded()

    def _coded(
        self, merged: Mapping[str, TensorRef], seen: Mapping[str, Sequence[Coded]]
    ) -> list[list[Coded]]:
        """Every block of every tensor, in order."""
        workers = self._machine.threads or available_cores()
        with ThreadPoolExecutor(workers, thread_name_prefix="adaptool-blocks") as pool:
            waiting = []
            for one in self._reversal.tensors:
                beside = merged.get(one.base.name)
                known = seen.get(one.base.name, ())
                waiting.append(
                    [
                        pool.submit(self._block, one, beside, cut, known[place] if known else None)
                        for place, cut in enumerate(cuts(one.base, beside))
                    ]
                )
            return [[future.result() for future in each] for each in waiting]

    def _block(
        self, one: Restoration, merged: TensorRef | None, cut: Cut, seen: Coded | None
    ) -> Coded:
        """One block: its digests, and the shortest stream that gives it back."""
        if seen is not None and seen.block.length <= _DENSE * cut.size:
            return seen
        ours = content(one.base, cut.base)
        if merged is None:
            return _raw(one.base, cut, ours)
        theirs = content(merged, cut.merged or (0, 0))
        if seen is None and ours == theirs:
            check = digest(ours)
            return Coded(Block(Coding.NOTHING, 0, check, check, digest(b"")), self._spill, 0)
        coding, stream = min(_dense(ours, theirs, one.base), key=lambda pair: len(pair[1]))
        if seen is not None and seen.block.length <= len(stream):
            return seen
        block = Block(coding, len(stream), digest(theirs), digest(ours), digest(stream))
        return Coded(block, self._spill, self._spill.append(stream))

    def _write(self, stage: Stage, coded: Sequence[Sequence[Coded]]) -> OutputEntry:
        """Header, documents, streams."""
        kept, contents = [], []
        for role, document in self._reversal.documents:
            plain = document.content or _read(document.copy_of)
            packed = deflated(plain)
            contents.append(packed)
            kept.append(Kept(role, document.name, len(packed), digest(packed), len(plain)))
        tensors = tuple(
            Restored(one.base.name, one.way, one.source, tuple(each.block for each in blocks))
            for one, blocks in zip(self._reversal.tensors, coded, strict=True)
        )
        header = Sidecar(tensors, tuple(kept), self._reversal.about).header()
        streams = [each for blocks in coded for each in blocks]
        start = len(header) + sum(map(len, contents))
        size = start + sum(each.block.length for each in streams)
        sink = stage.sink(SIDECAR, size)
        sink.write(0, memoryview(header + b"".join(contents)))
        for each in streams:
            sink.copy_from(each.source, each.offset, start, each.block.length)
            start += each.block.length
        stage.finished(sink)
        return OutputEntry(SIDECAR, size)


def inverted(one: Restoration, merged: TensorRef) -> Row:
    """The row that subtracts from the merged tensor what the merge added to the base's."""
    row = one.row
    pieces = row.pieces if row is not None else ()
    return Row(
        name=one.base.name,
        dtype=one.base.dtype,
        shape=one.base.shape,
        file="",
        offset=0,
        length=one.base.length,
        source=merged,
        pieces=tuple(replace(piece, weight=-piece.weight) for piece in pieces),
        fold=row.fold if row is not None else 1,
    )


def _is_plain_sum(one: Restoration) -> bool:
    """Whether the merge's own tiles tell what subtraction gives: W + d in W's dtype."""
    row = one.row
    if row is None or row.blends or not row.pieces or row.dtype != one.base.dtype:
        return False
    return all(tuners()[piece.delta.tuner].DECLARATION.additive for piece in row.pieces)


def _merged(row: Row, source: LocalSource) -> TensorRef:
    return TensorRef(row.name, row.dtype, row.shape, row.offset, row.length, source)


def _raw(base: TensorRef, cut: Cut, ours: Bytes) -> Coded:
    check = digest(ours)
    block = Block(Coding.RAW, len(ours), "", check, check)
    return Coded(block, base.source, base.offset + cut.base[0])


def _dense(ours: Bytes, theirs: Bytes, base: TensorRef) -> list[tuple[Coding, bytes]]:
    """What gives a block back whatever was predicted."""
    from adaptool.engine.codec import encode_plain, encode_xor

    width = max(1, base.dtype.bits // 8)
    if len(ours) == len(theirs):
        found = (Coding.XOR, encode_xor(ours, theirs, width))
    else:
        found = (Coding.DEFLATED, encode_plain(ours, width))
    return [found, (Coding.RAW, bytes(ours))]


def _read(path: Path | None) -> bytes:
    if path is None:
        return b""
    with LocalSource(path) as source:
        return source.read(0, source.size)
