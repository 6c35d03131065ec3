"""Tensor values read for inspection: scans of every value, spectra of low-rank deltas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Protocol, cast

from adaptool.engine.arithmetic import torch_dtype
from adaptool.engine.factors import load
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.linalg.factored import singular_values
from adaptool.linalg.spectrum import effective_rank
from adaptool.model.adapter import Delta, Terms
from adaptool.model.values import Scan, Spectrum
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 16 * 1024 * 1024


class _LowRank(Protocol):
    """What a tuner that declares `low_rank` offers besides."""

    def product_factors(
        self, factors: Mapping[str, torch.Tensor], terms: Terms, expert: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, r) and (r, in) whose product is the unscaled delta of one matrix."""
        ...


@dataclass(frozen=True, slots=True)
class TensorValues:
    """Reads values on the CPU, in blocks of 16 MiB where a tensor is scanned."""

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
        import torch

        tuner = tuners()[delta.tuner]
        if not tuner.DECLARATION.low_rank:
            return None
        factors = {role: load(ref).double() for role, ref in delta.roles.items()}
        if not all(bool(torch.isfinite(factor).all()) for factor in factors.values()):
            return None
        try:
            found = list(_singular_values(cast("_LowRank", tuner), factors, delta.terms))
        except InputError as error:
            if error.code is Code.UNSUPPORTED:  # a kernel whose groups the delta crosses
                return None
            raise
        return _summed_up(found, abs(delta.terms.scaling))


def _singular_values(
    tuner: _LowRank, factors: Mapping[str, torch.Tensor], terms: Terms
) -> Iterator[tuple[float, ...]]:
    """One matrix's singular values, or one expert's after the other."""
    for expert in range(terms.experts) if terms.experts else (None,):
        left, right = tuner.product_factors(factors, terms, expert)
        yield singular_values(left, right)


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
