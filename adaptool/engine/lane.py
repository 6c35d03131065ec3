"""One worker's buffers and the loop over its tiles: read, compute, round, hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.engine.arithmetic import Arithmetic, torch_dtype
from adaptool.engine.outlets import Outlet, Tile, Watching
from adaptool.engine.rounding import round_into
from adaptool.engine.sampling import Sampling, sampled
from adaptool.engine.tiles import FillJob, tile_height, tiles
from adaptool.errors import InputError, ResourceError
from adaptool.findings import Code
from adaptool.model.plan import Blend, Piece, Row
from adaptool.model.tuner import Observing, Update
from adaptool.model.view import Span, View
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

    Take = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A piece whose factors are loaded."""

    piece: Piece
    update: Update
    additive: bool


class Lane:
    """Reusable buffers of one thread: `capacity` elements, grown where a row is longer."""

    def __init__(self, arithmetic: Arithmetic, sampling: Sampling) -> None:
        """On CUDA the byte buffers are pinned and the lane has its own stream."""
        import torch

        self._arithmetic = arithmetic
        self._sampling = sampling
        self._capacity = 0
        cuda = arithmetic.device.type == "cuda"
        self._stream = torch.cuda.Stream(arithmetic.device) if cuda else None  # type: ignore[no-untyped-call]

    def _grow(self, elements: int) -> None:
        import torch

        if elements <= self._capacity:
            return
        self._capacity = elements
        device, dtype = self._arithmetic.device, self._arithmetic.dtype
        pinned = device.type == "cuda"
        self._read = torch.empty(elements * 8, dtype=torch.uint8, pin_memory=pinned)
        self._write = torch.empty(elements * 8, dtype=torch.uint8, pin_memory=pinned)
        self._base = torch.empty(elements, dtype=dtype, device=device)
        self._out = torch.empty(elements, dtype=dtype, device=device)
        self._single = torch.empty(elements, dtype=torch.float32, device=device)
        # Bytes go over as they are and are converted there: torch would convert on the CPU.
        self._arrived = (
            torch.empty(elements * 8, dtype=torch.uint8, device=device) if pinned else None
        )

    @contextmanager
    def computing(self) -> Iterator[None]:
        """On this lane's stream, without gradients; what the device refuses is a ResourceError."""
        import torch

        # torch before 2.8 has no error of its own for this.
        failures = getattr(torch, "AcceleratorError", torch.cuda.CudaError)
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield
                self._settled()
        except torch.OutOfMemoryError:
            message = f"{self._arithmetic.device} has no memory left for a tile"
            hint = "another process may hold it; --device cpu needs 350 MB of main memory"
            raise ResourceError(message, code=Code.OUT_OF_MEMORY, hint=hint) from None
        except failures as error:
            message = f"{self._arithmetic.device} failed: {str(error).splitlines()[0]}"
            hint = "re-run the same command to resume, or use --device cpu"
            raise ResourceError(message, code=Code.DEVICE_FAILED, hint=hint) from None

    def run(self, job: FillJob, updates: list[Prepared], outlet: Outlet) -> None:
        """Fill the job's rows, tile by tile."""
        columns = job.row.matrix[1]
        height = tile_height(columns, self._arithmetic.tile_elements)
        with self.computing():
            self._grow((height + 1) * max(1, columns))
            for start, stop in tiles(job.start, job.stop, height):
                self._tile(job.row, start, stop, updates, outlet)

    def visit(
        self,
        row: Row,
        updates: list[Prepared],
        take: Take,
        step: int = 1,
        rows: tuple[int, int] | None = None,
    ) -> None:
        """Hand every tile of a row to `take`, in order, in multiples of `step` rows.

        `rows`: only these, [start, stop). `take` gets the tile's first row, the unmerged and the
        merged values, (rows, columns) in the arithmetic's dtype: the lane's own buffers, valid
        until the next tile.
        """
        count, columns = row.matrix
        height = tile_height(columns, self._arithmetic.tile_elements)
        height = max(step, height // step * step)
        with self.computing():
            self._grow((height + 1) * max(1, columns))
            for start, stop in tiles(*(rows or (0, count)), height):
                base = self._load(row.source, start * columns, (stop - start, columns))
                out = self._out[: base.numel()].view(base.shape).copy_(base)
                self._merge(row, start, base, out, updates)
                self._settled()
                take(start, base, out)

    def rounded(self, row: Row, start: int, out: torch.Tensor) -> torch.Tensor:
        """A tile of merged values in the row's dtype, on the CPU, valid until the next."""
        return self._rounded(row, start, out)[0]

    def _rounded(
        self, row: Row, start: int, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same, and the places near the middle of two numbers where they were looked for."""
        size = row.dtype.bits // 8
        raw = self._write[: out.numel() * size]
        stored = raw.view(torch_dtype(row.dtype)).view(out.shape)
        single = self._single[: out.numel()].view(out.shape)
        if self._stream is None:
            middles = round_into(stored, out, single)
        else:
            on_device = out.new_empty(out.shape, dtype=stored.dtype)
            middles = round_into(on_device, out, single)
            stored.copy_(on_device, non_blocking=True)
            self._settled()
        _check_finite(row, start, stored, out)
        return stored, middles

    def observe(self, row: Row, height: int, watching: list[tuple[Piece, Observing]]) -> None:
        """Show all of W to the updates that must see it first, in blocks of `height` rows."""
        count, columns = row.matrix
        with self.computing():
            self._grow((height + 1) * max(1, columns))
            for start, stop in tiles(0, count, height):
                base = self._load(row.source, start * columns, (stop - start, columns))
                for piece, update in watching:
                    for block, own in piece.view.rows.pieces(start, stop):
                        update.observe(_cut(base, block, piece.view.columns), own)
            for _, update in watching:
                update.settle()

    def _load(self, ref: TensorRef, first: int, shape: tuple[int, int]) -> torch.Tensor:
        """`shape` values of `ref` from element `first` on, in the arithmetic's dtype."""
        size = ref.dtype.bits // 8
        count = shape[0] * shape[1]
        self._settled()  # what was read before may still be on its way to the device
        raw = self._read[: count * size]
        if count:
            ref.source.read_into(ref.offset + first * size, raw.numpy().data)
        if self._arrived is not None:
            raw = self._arrived[: count * size].copy_(raw, non_blocking=True)
        base = self._base[:count].view(shape)
        return base.copy_(raw.view(torch_dtype(ref.dtype)).view(shape))

    def _settled(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _tile(
        self, row: Row, start: int, stop: int, updates: list[Prepared], outlet: Outlet
    ) -> None:
        columns = row.matrix[1]
        shape = (stop - start, columns)
        base = self._load(row.source, start * columns, shape)
        sampling = row.is_touched and bool(sampled(row, start, stop))
        watching = outlet if isinstance(outlet, Watching) else None
        out = base
        if row.blends or sampling or not all(prepared.additive for prepared in updates):
            out = self._out[: base.numel()].view(shape).copy_(base)
        self._merge(row, start, base, out, updates)
        stored, middles = self._rounded(row, start, out)
        if sampling:
            self._sampling.take(row, start, base, out, stored)
        if watching is not None:
            raw = self._read[: out.numel() * row.source.dtype.bits // 8]
            watching.watch(row, Tile(start * columns, raw, out, stored, middles))
        if row.length:
            size = row.dtype.bits // 8
            raw = self._write[: out.numel() * size]
            outlet.fill(row, start * columns * size, raw.numpy().data)

    def _merge(
        self,
        row: Row,
        start: int,
        base: torch.Tensor,
        out: torch.Tensor,
        updates: list[Prepared],
    ) -> None:
        """What the adapters add to a tile that begins at row `start`, onto `out`."""
        stop = start + base.shape[0]
        for blend in row.blends:
            self._blend(blend, start, out, base)
        for prepared in updates:
            view = prepared.piece.view
            for block, own in view.rows.pieces(start, stop):
                target, seen = _cut(out, block, view.columns), _cut(base, block, view.columns)
                prepared.update.accumulate(target, seen, own)

    def _blend(self, blend: Blend, start: int, out: torch.Tensor, base: torch.Tensor) -> None:
        """out += weight * (value - base), on all of the tile or what of it the blend is for."""
        width = base.shape[1]
        if blend.view is not None:
            self._blend_part(blend, blend.view, start, out, base)
            return
        if blend.rows is None:
            value = self._value(blend.value, start * width, base.shape[0] * width)
            _mix(out, base, value.view(base.shape), blend.weight)
            return
        for place, index in enumerate(blend.rows):
            if start <= index < start + base.shape[0]:
                value = self._value(blend.value, place * width, width)
                _mix(out[index - start], base[index - start], value, blend.weight)

    def _blend_part(
        self, blend: Blend, view: View, start: int, out: torch.Tensor, base: torch.Tensor
    ) -> None:
        width = view.columns.count
        for block, own in view.rows.pieces(start, start + base.shape[0]):
            target, seen = _cut(out, block, view.columns), _cut(base, block, view.columns)
            value = self._value(blend.value, own.start * width, seen.numel())
            _mix(target, seen, value.view(seen.shape), blend.weight)

    def _value(self, ref: TensorRef, first: int, count: int) -> torch.Tensor:
        size = ref.dtype.bits // 8
        self._settled()  # the buffer's bytes may still be on their way to the device
        raw = self._read[: count * size]
        ref.source.read_into(ref.offset + first * size, raw.numpy().data)
        return raw.view(torch_dtype(ref.dtype)).to(
            device=self._arithmetic.device, dtype=self._arithmetic.dtype
        )


def _cut(matrix: torch.Tensor, rows: slice, columns: Span) -> torch.Tensor:
    part = matrix[rows]
    if not columns.is_whole(matrix.shape[1]):
        stop = columns.start + (columns.length - 1) * columns.step + 1
        part = part[:, columns.start : stop : columns.step]
    return part


def _mix(out: torch.Tensor, base: torch.Tensor, value: torch.Tensor, weight: float) -> None:
    """out += weight * (value - base); exactly the value where the weight is 1 and out is base."""
    if weight == 1.0:
        out.copy_(value.where(out == base, value + (out - base)))
    else:
        out.add_(value.sub(base), alpha=weight)


def _check_finite(row: Row, start: int, stored: torch.Tensor, exact: torch.Tensor) -> None:
    """InputError where a merge or a narrower dtype made what is stored infinite, or NaN."""
    import torch

    if stored.element_size() > 1 and bool(torch.isfinite(stored.sum(dtype=_sum_dtype(stored)))):
        return
    lost = ~torch.isfinite(stored.double())
    if not row.is_touched:  # infinities of the base itself stay as they are
        lost &= torch.isfinite(exact).to(lost.device)
    bad = lost.flatten().nonzero()
    if not len(bad):
        return
    first = int(bad[0]) // stored.shape[1] + start
    whose = "merged" if row.is_touched else "base"
    message = f"{len(bad)} {whose} values do not fit {row.dtype.name}, the first in row {first}"
    hint = "--dtype float32 or bfloat16 has the range"
    raise InputError(
        message, code=Code.RESULT_NOT_FINITE, file=row.file, tensor=row.name, hint=hint
    )


def _sum_dtype(stored: torch.Tensor) -> torch.dtype:
    """A sum that cannot overflow before the values do: float32 for 16-bit values."""
    import torch

    return torch.float32 if stored.element_size() == 2 else torch.float64
