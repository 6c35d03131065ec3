"""Factors of the difference of two checkpoints, in passes over its tiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from adaptool.engine.algebra import computed
from adaptool.engine.arithmetic import Arithmetic, arithmetic, torch_dtype
from adaptool.engine.passes import compare_tensors
from adaptool.engine.run import forget
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.errors import InputError
from adaptool.linalg.streamed import Streamed, leading
from adaptool.model.algebra import Measured
from adaptool.model.extraction import Difference
from adaptool.model.options import Machine, Precision
from adaptool.store.tensors import TensorRef
from adaptool.tuners.low_rank_factors import stored_factors, stored_shapes

if TYPE_CHECKING:
    import torch

    Tile = tuple[slice, torch.Tensor]

# Elements of the difference in memory at once: 8 MB of float64, so that a product is worth it.
TILE = 1024 * 1024


class DifferenceExtractor:
    """`model.extraction.Extractor` with torch, in float64."""

    def __init__(self, machine: Machine, *, exact: bool = False) -> None:
        """`exact`: always by the Gram matrix, never by a randomised subspace."""
        self._machine = machine
        self._exact = exact
        self._settled: Arithmetic | None = None
        self._lock = threading.Lock()
        self._measured: dict[str, Measured] = {}

    def is_changed(self, base: TensorRef, tuned: TensorRef) -> bool:
        """Whether any element differs, whatever the dtypes."""
        return compare_tensors(base, tuned).difference > 0

    def rank_for(self, difference: Difference, energy: float) -> int:
        """The largest rank that one of its matrices needs."""
        found = self._each(difference, lambda *each: self._leading(*each, energy=energy))
        rank = max(one.right.shape[0] for one in found)
        _forget(difference)
        return rank

    def factors(self, difference: Difference, rank: int) -> Mapping[str, TensorRef]:
        """B (out, r) and A (r, in) of each matrix, as LoRA stores them."""

        def make() -> Mapping[str, torch.Tensor]:
            each = partial(self._leading, rank=rank)
            found = list(self._each(difference, each))
            _forget(difference)
            self._note(difference.name, found)
            pairs = [(one.left, one.right) for one in found]
            if difference.transposed:
                pairs = [(right.T, left.T) for left, right in pairs]
            return stored_factors(pairs, difference.terms)

        shapes = stored_shapes(difference.terms, rank)
        return computed(make, [difference.base, difference.tuned], shapes)

    def measured(self) -> Mapping[str, Measured]:
        """Error and norm by name."""
        return self._measured

    def _note(self, name: str, found: list[Streamed]) -> None:
        error = norm = 0.0
        for one in found:
            kept = float(((one.left.T @ one.left) * (one.right @ one.right.T)).sum())
            # Left and right are an orthogonal projection: what is kept and what is cut add up.
            share = min(one.relative_error, 1.0 - 1e-15) ** 2
            total = kept / (1.0 - share)
            error, norm = error + share * total, norm + total
        with self._lock:
            self._measured[name] = Measured(error, norm)

    def _leading(
        self,
        tiles: Callable[[], Iterator[Tile]],
        shape: tuple[int, int],
        *,
        rank: int | None = None,
        energy: float | None = None,
    ) -> Streamed:
        return leading(tiles, shape, rank=rank, energy=energy, exact=self._exact)

    def _each(
        self,
        difference: Difference,
        factor: Callable[[Callable[[], Iterator[Tile]], tuple[int, int]], Streamed],
    ) -> Iterator[Streamed]:
        """Every matrix of the difference: one, or one for each stacked expert."""
        if self._settled is None:
            self._settled = arithmetic(self._machine, Precision.FLOAT64, TILE_ELEMENTS)
        terms = difference.terms
        shape = (terms.inner, terms.out) if difference.transposed else (terms.out, terms.inner)
        for place in range(max(1, terms.experts)):
            first = place * terms.out * terms.inner
            try:
                yield factor(partial(_tiles, difference, shape, first), shape)
            except InputError as error:
                error.tensor, error.file = error.tensor or difference.name, difference.tuned.file
                raise


def _forget(difference: Difference) -> None:
    forget(difference.base.source)
    forget(difference.tuned.source)


def _tiles(difference: Difference, shape: tuple[int, int], first: int) -> Iterator[Tile]:
    """Rows of tuned - base in float64, from element `first` of the tensors on."""
    rows, columns = shape
    height = max(1, TILE // columns)
    for start in range(0, rows, height):
        stop = min(start + height, rows)
        place, count = first + start * columns, (stop - start) * columns
        tile = _values(difference.tuned, place, count)
        tile -= _values(difference.base, place, count)
        yield slice(start, stop), tile.view(stop - start, columns)


def _values(ref: TensorRef, first: int, count: int) -> torch.Tensor:
    import torch

    size = ref.dtype.bits // 8
    raw = torch.empty(count * size, dtype=torch.uint8)
    ref.source.read_into(ref.offset + first * size, raw.numpy().data)
    return raw.view(torch_dtype(ref.dtype)).double()
