"""What a merge rounds away, seen tile by tile.

Where the plan adds float64 deltas to a tensor of the output's own dtype, the tiles of the merge
itself tell: with M what was stored and `out` what was rounded, subtracting the delta from M gives
W + (M - out), to 2^-52. Every other tensor is subtracted in a run of its own.

Blocks are digested and encoded while their bytes are at hand: no file is read a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.engine.blocks import PIECE_BYTES, block_elements, content
from adaptool.engine.outlets import Outlet, Tile
from adaptool.engine.tiles import CopyJob
from adaptool.model.plan import Row
from adaptool.model.reversal import Restoration
from adaptool.store.sidecar import BLOCK_BYTES, Block, Coding, RunningDigest, Way, digest
from adaptool.store.source import Source
from adaptool.store.spill import Spill
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np

    from adaptool.engine.bits import Format
    from adaptool.engine.codec import Marks, Suspects

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Coded:
    """A block as the sidecar's header lists it, and where its stream is read from."""

    block: Block
    source: Source
    offset: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A run of elements: the base's, the merged ones, and those that may need a mark.

    `merged` and `part` are None where the merged bytes are the base's own.
    """

    base: memoryview
    merged: memoryview | None = None
    part: Marks | Suspects | None = None

    def between(self, start: int, stop: int) -> Seen:
        """Elements [start, stop)."""
        if start == 0 and stop == len(self.base):
            return self
        return Seen(
            self.base[start:stop],
            None if self.merged is None else self.merged[start:stop],
            None if self.part is None else self.part.between(start, stop),
        )


class _OpenBlock:
    """A block of `size` elements, of which some were seen."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._base, self._merged = RunningDigest(), RunningDigest()
        self._parts: dict[int, Marks | Suspects] = {}
        self._lock = threading.Lock()

    def take(self, first: int, seen: Seen) -> bool:
        """Elements from `first` on; whether none is missing any more."""
        with self._lock:
            self._base.take(first, seen.base)
            if seen.merged is not None:
                self._merged.take(first, seen.merged)
            if seen.part is not None:
                self._parts[first] = seen.part
            self._missing -= len(seen.base)
            return not self._missing

    def coded(self, spill: Spill, form: Format | None) -> Coded:
        """Its stream, kept in `spill`; `form` is None where it was copied."""
        base = self._base.text()
        if form is None:
            return Coded(Block(Coding.NOTHING, 0, base, base, digest(b"")), spill, 0)
        from adaptool.engine.codec import encode_sparse, settled

        stream = encode_sparse(settled(sorted(self._parts.items()), form))
        coding = Coding.SPARSE if stream else Coding.NOTHING
        block = Block(coding, len(stream), self._merged.text(), base, digest(stream))
        return Coded(block, spill, spill.append(stream))


class _Tensor:
    """A tensor of the base in blocks of `step` elements; those that are seen whole are coded."""

    def __init__(self, size: int, step: int) -> None:
        self.size, self.step = size, step
        self.open: dict[int, _OpenBlock] = {}
        self.coded: dict[int, Coded] = {}

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Every block that elements [first, first + count) touch: its place, and which of them."""
        for place in range(first // self.step, -(-(first + count) // self.step)):
            start = place * self.step
            yield place, max(first, start), min(first + count, start + self.step)

    def block(self, place: int) -> _OpenBlock:
        """A block that still lacks elements."""
        found = self.open.get(place)
        if found is None:
            found = _OpenBlock(min(self.step, self.size - place * self.step))
            self.open[place] = found
        return found


class Recorder:
    """Takes runs of elements in any order, from several threads; a whole block is encoded."""

    def __init__(self, restorations: Mapping[str, Restoration], spill: Spill) -> None:
        """`restorations` by the name of the row that is watched."""
        self._restorations, self._spill = restorations, spill
        self._tensors = {name: _tensor(one) for name, one in restorations.items()}
        self._lock = threading.Lock()

    def wants(self, row: Row) -> bool:
        """Whether this row's bytes are of use."""
        return row.name in self._tensors

    def take(self, name: str, first: int, seen: Seen) -> None:
        """Elements of the row `name` from `first` on; bytes where the row is copied."""
        tensor = self._tensors[name]
        for place, start, stop in tensor.pieces(first, len(seen.base)):
            with self._lock:
                block = tensor.block(place)
            if block.take(start - place * tensor.step, seen.between(start - first, stop - first)):
                coded = block.coded(self._spill, self._form(name))
                with self._lock:
                    tensor.coded[place] = coded
                    del tensor.open[place]

    def coded(self) -> dict[str, list[Coded]]:
        """The blocks of every tensor that was seen, in their order, by the base's name."""
        return {
            self._restorations[name].base.name: [coded for _, coded in sorted(tensor.coded.items())]
            for name, tensor in self._tensors.items()
        }

    def _form(self, name: str) -> Format | None:
        from adaptool.engine.bits import FORMATS

        one = self._restorations[name]
        return FORMATS[one.base.dtype.name] if one.way is Way.SUBTRACTED else None


def _tensor(one: Restoration) -> _Tensor:
    if one.way is Way.COPIED:
        return _Tensor(one.base.length, BLOCK_BYTES)
    step = block_elements(one.row.dtype if one.row is not None else one.base.dtype)
    return _Tensor(one.base.elements, step)


class MergeWatch:
    """The outlet of a reversible merge: writes, and looks at what is rounded away."""

    def __init__(self, files: Outlet, recorder: Recorder) -> None:
        """Bytes go on to `files`."""
        self._files, self._recorder = files, recorder

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Write a tile."""
        self._files.fill(row, start, content)

    def copy(self, job: CopyJob) -> None:
        """Copy, and digest what was copied."""
        self._files.copy(job)
        buffer = memoryview(bytearray(PIECE_BYTES))
        for row in filter(self._recorder.wants, job.rows):
            start = max(job.offset, row.offset)
            stop = min(job.offset + job.length, row.offset + row.length)
            for first in range(start, stop, PIECE_BYTES):
                piece = buffer[: stop - first]
                job.source.read_into(job.source_offset + first - job.offset, piece)
                self._recorder.take(row.name, first - row.offset, Seen(piece))

    def watch(self, row: Row, tile: Tile) -> None:
        """Note what subtracting from what is stored might not give back."""
        if not self._recorder.wants(row):
            return
        from adaptool.engine.bits import FORMATS
        from adaptool.engine.codec import suspects

        form = FORMATS[row.dtype.name]
        exact = tile.out.reshape(-1).cpu().numpy()
        merged = _stored(tile, form)
        true = tile.raw.numpy().view(form.pattern)
        part = suspects(true, merged, exact, _middles(tile, exact, form), form)
        self._recorder.take(row.name, tile.first, Seen(true.data, merged.data, part))


class SubtractionWatch:
    """The outlet of a run that subtracts: only looks."""

    def __init__(self, recorder: Recorder, bases: Mapping[str, TensorRef]) -> None:
        """`bases` are the true tensors by the name of their row."""
        self._recorder, self._bases = recorder, bases

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Nothing is written."""

    def copy(self, job: CopyJob) -> None:
        """Nothing is written."""

    def watch(self, row: Row, tile: Tile) -> None:
        """Mark where the values do not round to the base's bits."""
        from adaptool.engine.bits import FORMATS
        from adaptool.engine.codec import mark, mark_rounded

        form, theirs = FORMATS[row.dtype.name], FORMATS[row.source.dtype.name]
        values = tile.out.reshape(-1).cpu().numpy()
        true = _bits_at(self._bases[row.name], tile.first, len(values), form)
        merged = tile.raw.numpy().view(theirs.pattern)
        if form == theirs:
            near, stored = _middles(tile, values, form), _stored(tile, form)
            marks = mark_rounded(true, merged, values, form, rounded=stored, middles=near)
        else:
            marks = mark(true, merged, values, form, theirs)
        self._recorder.take(row.name, tile.first, Seen(true.data, merged.data, marks))


def _stored(tile: Tile, form: Format) -> Array:
    """The bits of what is stored."""
    import torch

    return tile.stored.reshape(-1).view(torch.uint8).numpy().view(form.pattern)


def _middles(tile: Tile, values: Array, form: Format) -> Array:
    """Places near the middle of two numbers, looked for where rounding did not."""
    from adaptool.engine.codec import middles

    if tile.middles is None:
        return middles(values, form)
    found: Array = tile.middles.cpu().numpy()
    return found


def _bits_at(ref: TensorRef, first: int, count: int, form: Format) -> Array:
    """Bits of elements [first, first + count)."""
    import numpy as np

    width = ref.dtype.bits // 8
    raw = content(ref, (first * width, (first + count) * width))
    return np.frombuffer(raw, form.pattern)
