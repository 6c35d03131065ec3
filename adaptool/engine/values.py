"""Tensor values read for inspection: scans of every value, spectra of low-rank deltas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, TypeVar

from adaptool.engine import passes, products
from adaptool.engine.arithmetic import Arithmetic, arithmetic, torch_dtype
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.linalg.factored import singular_values
from adaptool.linalg.spectrum import effective_rank
from adaptool.model.adapter import Delta
from adaptool.model.options import Machine, Precision
from adaptool.model.values import Comparison, Scan, Spectrum
from adaptool.model.view import View
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 4 * 1024 * 1024
ON_ANY = Machine()

Item = TypeVar("Item")
Found = TypeVar("Found")


class TensorValues:
    """Reads values, in blocks of 4 MiB where a tensor is scanned.

    What compares computes on the machine's device, the rest on the CPU.
    """

    def __init__(self, machine: Machine = ON_ANY) -> None:
        """Nothing is imported before something is read."""
        self._machine = machine
        self._settled: Arithmetic | None = None

    @property
    def _arithmetic(self) -> Arithmetic:
        if self._settled is None:
            self._settled = arithmetic(self._machine, Precision.FLOAT64, TILE_ELEMENTS)
        return self._settled

    def several(self, work: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
        """What `work` finds of each item, in their order, several at a time."""
        with ThreadPoolExecutor(self._arithmetic.workers) as pool:
            yield from pool.map(work, items)

    def scan(self, ref: TensorRef) -> Scan:
        """Count what is not finite; tensors that are no plain numbers are only tested for zero."""
        nonfinite, first, seen, all_zero = 0, None, 0, True
        for block in _blocks(ref):
            all_zero = all_zero and not bool(block.any())
            bad = _not_finite(block) if ref.dtype.floating else None
            if bad is not None:
                nonfinite += len(bad)
                first = seen + int(bad[0]) if first is None else first
            seen += block.numel()
        return Scan(nonfinite, first, all_zero and bool(ref.length))

    def spectrum(self, delta: Delta) -> Spectrum | None:
        """From the r x r core in float64; None for a delta that is not low-rank, or not finite."""
        pairs = products.products(delta) if tuners()[delta.tuner].DECLARATION.low_rank else None
        if pairs is None or not products.is_finite(pairs):
            return None
        found = [singular_values(left, right) for left, right in pairs]
        return _summed_up(found, abs(delta.terms.scaling))

    def gram(self, deltas: Sequence[Delta]) -> tuple[tuple[float, ...], ...] | None:
        """All inner products of scaled deltas of one shape; None where one is no product."""
        return products.gram(deltas)

    def compare(self, one: Delta, other: Delta) -> Comparison | None:
        """Two scaled deltas of one shape; None where one of them is no product."""
        return products.compare(one, other, self._arithmetic.device)

    def norm_squared(self, delta: Delta) -> float | None:
        """|delta|^2, scaled; None where it is no product."""
        pairs = products.products(delta, self._arithmetic.device)
        return None if pairs is None else products.squared(pairs, delta.terms.scaling)

    def compare_tensors(self, one: TensorRef, other: TensorRef) -> Comparison:
        """Two tensors of one shape, element by element."""
        return passes.compare_tensors(one, other, self._arithmetic.device)

    def squares(self, ref: TensorRef, view: View | None = None) -> float:
        """The sum of squares of the elements that `view` names, of all where it is None."""
        return passes.squares(ref, view)


def _blocks(ref: TensorRef) -> Iterator[torch.Tensor]:
    """The tensor's values piece by piece, each valid until the next is asked for."""
    import torch

    # Sub-byte and unknown element types are looked at as bytes: enough to tell zeros.
    plain = ref.dtype.torch is not None and ref.dtype.bits % 8 == 0
    dtype = torch_dtype(ref.dtype) if plain else torch.uint8
    buffer = torch.empty(min(BLOCK_BYTES, ref.length), dtype=torch.uint8)
    for start in range(0, ref.length, BLOCK_BYTES):
        raw = buffer[: min(BLOCK_BYTES, ref.length - start)]
        ref.source.read_into(ref.offset + start, raw.numpy().data)
        values = raw.view(dtype)
        # float8 knows no isfinite.
        yield values.float() if ref.dtype.floating and ref.dtype.bits == 8 else values


def _not_finite(block: torch.Tensor) -> torch.Tensor | None:
    """Flat indices of NaN and infinities, None where there are none."""
    import torch

    finite = torch.isfinite(block)
    return None if bool(finite.all()) else (~finite).nonzero().flatten()


def _summed_up(values: list[tuple[float, ...]], scaling: float) -> Spectrum | None:
    """One spectrum of all experts' singular values, each largest first."""
    norm = scaling * math.hypot(*(value for matrix in values for value in matrix))
    if not math.isfinite(norm):
        return None
    largest = max((value for matrix in values for value in matrix), default=0.0) or 1.0
    ranked = [
        math.fsum((value / largest) ** 2 for value in at_rank)
        for at_rank in zip_longest(*values, fillvalue=0.0)
    ]
    total = math.fsum(ranked) or 1.0
    energy = tuple(min(1.0, kept / total) for kept in accumulate(ranked))
    mean = math.fsum(effective_rank(matrix) for matrix in values) / len(values)
    return Spectrum(norm, mean, energy)
