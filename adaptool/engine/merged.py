"""What deltas make of a base's weight, as float64 bytes that are computed when they are read.

So f(W) - W of any tuner is the difference of two tensors, and whatever works on those works on it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptool.engine.arithmetic import Arithmetic, arithmetic
from adaptool.engine.factors import FactorStore
from adaptool.engine.lane import Lane, Prepared
from adaptool.engine.passes import compare_tensors
from adaptool.engine.run import forget
from adaptool.engine.sampling import Sampling
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.engine.updates import prepared_updates
from adaptool.errors import AdaptoolError, InputError
from adaptool.findings import Code
from adaptool.model.algebra import Measured
from adaptool.model.based import Change, Placed
from adaptool.model.derived import F64
from adaptool.model.extraction import Difference
from adaptool.model.options import Machine, Precision
from adaptool.model.view import Span
from adaptool.store.source import check_unchanged
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

# What a new LoRA keeps of another kind's switches: where the parameter lies, not how it is made.
_PLACES = frozenset({"axes", "packing", "parameter"})


class ChangedSource:
    """A parameter (experts, rows, columns) under a change, or as it was before.

    Factors and norms are kept from the first read until `forget`; a read computes whole rows.
    """

    def __init__(self, change: Change, weights: MergedWeights, *, changed: bool) -> None:
        """`changed`: with the deltas; without, the base's own values."""
        self._change, self._weights, self._changed = change, weights, changed
        self._lock = threading.Lock()
        self._lane: Lane | None = None
        self._updates: dict[int, list[Prepared]] = {}

    @property
    def parents(self) -> tuple[TensorRef, ...]:
        """The base's tensors; with the deltas, their factors as well."""
        rows = [placed.row for placed in self._change.places]
        found = [row.source for row in rows]
        if self._changed:
            found += [
                ref for row in rows for piece in row.pieces for ref in piece.delta.roles.values()
            ]
        return tuple({id(ref): ref for ref in found}.values())

    @property
    def name(self) -> str:
        """The file of the first tensor."""
        return self._change.places[0].row.source.file

    @property
    def size(self) -> int:
        """Bytes."""
        return 8 * self._change.elements

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Compute the rows that hold these bytes."""
        import torch

        target = buffer.cast("B")
        width = 8 * self._change.shape[2]
        first, last = offset // width, -(-(offset + len(target)) // width)
        with self._lock:
            rows = self._rows(first, last)
        begin = offset - first * width
        target[:] = rows.view(torch.uint8).reshape(-1).numpy().data[begin : begin + len(target)]

    def _rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of the parameter, its matrices one below the other."""
        import torch

        if self._lane is None:
            self._lane = self._weights.lane()
        made = torch.empty((last - first, self._change.shape[2]), dtype=torch.float64)
        for number, placed in enumerate(self._change.places):
            self._fill(made, first, number, placed)
        return made

    def _fill(self, made: torch.Tensor, first: int, number: int, placed: Placed) -> None:
        """What one tensor of the base holds of these rows."""
        into_rows, into_columns = _into(self._change, placed)
        for here, own in into_rows.pieces(first, first + len(made)):
            self._copy(made[here], into_columns, number, placed, own)

    def _copy(
        self, target: torch.Tensor, into: Span, number: int, placed: Placed, own: slice
    ) -> None:
        """Elements `own` of the view's rows into the columns `into` of `target`."""
        import torch

        row, view = placed.row, placed.view
        wanted = _indices(view.rows, own)
        columns = None if view.columns.is_whole(row.matrix[1]) else _indices(view.columns)
        places = None if into.is_whole(target.shape[1]) else _indices(into)

        def take(start: int, base: torch.Tensor, out: torch.Tensor) -> None:
            low, high = torch.searchsorted(wanted, torch.tensor([start, start + len(out)])).tolist()
            values = (out if self._changed else base)[wanted[low:high] - start]
            if columns is not None:
                values = values[:, columns]
            if places is None:
                target[low:high] = values
            else:
                target[low:high, places] = values

        lane = self._lane or self._weights.lane()
        updates = self._prepared(number, placed, lane) if self._changed else []
        span = int(wanted[0]), int(wanted[-1]) + 1
        lane.visit(row, updates, take, rows=span)

    def _prepared(self, number: int, placed: Placed, lane: Lane) -> list[Prepared]:
        if number not in self._updates:
            store = self._weights.factors()
            try:
                self._updates[number] = prepared_updates(placed.row, lane, store, exact=True)
            except AdaptoolError as error:
                error.tensor = error.tensor or self._change.name
                raise
        return self._updates[number]

    def forget(self) -> None:
        """Let go of factors and buffers."""
        with self._lock:
            self._updates, self._lane = {}, None
        for placed in self._change.places:
            forget(placed.row.source.source)

    def check_unchanged(self) -> None:
        """IntegrityError where a file changed since it was opened."""
        for parent in self.parents:
            check_unchanged(parent.source)

    def close(self) -> None:
        """The files belong to whoever opened them."""
        self.forget()


def _into(change: Change, placed: Placed) -> tuple[Span, Span]:
    """Where the view's rows and columns stand in the parameter."""
    view, (_, rows, columns) = placed.view, change.shape
    taken = view.take_rows or Span(0, rows)
    start = taken.start + (view.expert or 0) * rows
    return replace(taken, start=start), view.take_columns or Span(0, columns)


def _indices(span: Span, own: slice | None = None) -> torch.Tensor:
    """The indices of the span's elements `own`, all by default."""
    import torch

    part = own or slice(0, span.count)
    element = torch.arange(part.start, part.stop)
    return span.start + element // span.length * span.stride + element % span.length * span.step


class MergedWeights:
    """`model.based.BaseWeights` with torch, in float64.

    On the CPU, where what reads the tiles is: the bytes are then the same whatever the device.
    """

    def __init__(self, machine: Machine) -> None:
        """Nothing is imported before something is read."""
        self._machine = Machine("cpu", machine.threads)
        self._lock = threading.Lock()
        self._settled: Arithmetic | None = None

    def _arithmetic(self) -> Arithmetic:
        with self._lock:
            if self._settled is None:
                self._settled = arithmetic(self._machine, Precision.FLOAT64, TILE_ELEMENTS)
            return self._settled

    def lane(self) -> Lane:
        """Buffers for one reader."""
        return Lane(self._arithmetic(), Sampling())

    def factors(self) -> FactorStore:
        """A store for the factors of one change."""
        return FactorStore(self._arithmetic())

    def difference(self, change: Change) -> Difference:
        """The change between the parameter as it was and as it becomes."""
        terms = change.terms
        kept = {name: value for name, value in terms.conventions.items() if name in _PLACES}
        return Difference(
            change.name,
            self._before(change),
            self._after(change),
            replace(terms, scaling=1.0, alpha=None, conventions=kept),
            change.transposed,
        )

    def errors(self, pairs: Sequence[tuple[Change, Change]]) -> list[Measured]:
        """Several pairs at a time."""
        with ThreadPoolExecutor(self._arithmetic().workers) as pool:
            return list(pool.map(self._error, pairs))

    def _error(self, pair: tuple[Change, Change]) -> Measured:
        wanted, had = map(self._after, pair)
        before = self._before(pair[0])
        found = Measured(
            compare_tensors(had, wanted).difference, compare_tensors(before, wanted).difference
        )
        for ref in (wanted, had, before):
            forget(ref.source)
        if not math.isfinite(found.error + found.norm):
            message = "the base's weights under it are not finite"
            raise InputError(message, code=Code.NOT_FINITE, tensor=pair[0].name)
        return found

    def _before(self, change: Change) -> TensorRef:
        """The parameter as the base has it: the tensor itself where it is all of it."""
        row, view = change.places[0].row, change.places[0].view
        rows, columns = row.matrix
        alone = len(change.places) == 1 and rows * columns == change.elements
        if alone and view.rows.is_whole(rows) and view.columns.is_whole(columns):
            return row.source
        return self._tensor(change, ChangedSource(change, self, changed=False))

    def _after(self, change: Change) -> TensorRef:
        return self._tensor(change, ChangedSource(change, self, changed=True))

    def _tensor(self, change: Change, source: ChangedSource) -> TensorRef:
        return TensorRef(change.name, F64, change.shape, 0, source.size, source)
