"""Low-rank algebra on adapters: factors that are computed when somebody reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, cast

from adaptool.combinations.merging import combined
from adaptool.combinations.method import Combined, Factored
from adaptool.engine.arithmetic import Arithmetic, arithmetic
from adaptool.engine.factors import check_finite, load
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.linalg.factored import core, singular_values, truncated
from adaptool.model.adapter import Delta
from adaptool.model.algebra import Measured, Mixture, Spectra
from adaptool.model.derived import F64
from adaptool.model.options import Machine, Precision
from adaptool.model.tuner import LowRank
from adaptool.store.source import check_unchanged
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners
from adaptool.tuners.low_rank_factors import stored_factors, stored_shapes

if TYPE_CHECKING:
    import torch

    Factors = Mapping[str, torch.Tensor]
    Pair = tuple[torch.Tensor, torch.Tensor]


class Job:
    """One computation of several tensors; its result is kept until all of them were read once."""

    def __init__(self, make: Callable[[], Factors], parents: Sequence[TensorRef]) -> None:
        """`make` computes the tensors by role, in float64, from the stored `parents`."""
        self.parents = tuple(parents)
        self._make = make
        self._lock = threading.Lock()
        self._made: dict[str, torch.Tensor] = {}
        self._unread: dict[str, int] = {}

    def copy_into(self, role: str, offset: int, target: memoryview) -> None:
        """Bytes of one tensor from `offset` on; computes all of them where none is kept."""
        import torch

        with self._lock:
            if role not in self._made:
                with torch.inference_mode():
                    self._made = {name: made.cpu() for name, made in self._make().items()}
                self._unread = {name: made.nbytes for name, made in self._made.items()}
            raw = self._made[role].contiguous().reshape(-1).view(torch.uint8).numpy().data
            target[:] = raw[offset : offset + len(target)]
            self._unread[role] -= len(target)
            if self._unread[role] <= 0:
                del self._made[role]


class ComputedSource:
    """One tensor of a job, as a source of float64 bytes."""

    def __init__(self, job: Job, role: str, size: int) -> None:
        """`size` in bytes."""
        self.job = job
        self._role = role
        self._size = size

    @property
    def parents(self) -> tuple[TensorRef, ...]:
        """The tensors it is computed from."""
        return self.job.parents

    @property
    def name(self) -> str:
        """The file of the first parent."""
        return self.job.parents[0].file

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Compute, or go on with what was computed."""
        self.job.copy_into(self._role, offset, buffer.cast("B"))

    def check_unchanged(self) -> None:
        """IntegrityError where a parent's file changed since it was opened."""
        for parent in self.job.parents:
            check_unchanged(parent.source)

    def close(self) -> None:
        """The files belong to whoever opened them."""


def computed(
    make: Callable[[], Factors],
    parents: Sequence[TensorRef],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, TensorRef]:
    """Tensors by role, in float64, that one call of `make` gives."""
    job = Job(make, parents)
    refs = {}
    for role, shape in shapes.items():
        length = 8 * prod(shape)
        source = ComputedSource(job, role, length)
        refs[role] = TensorRef(parents[0].name, F64, shape, 0, length, source)
    return refs


class FactorAlgebra:
    """`model.algebra.Algebra` with torch, on the machine's device, in float64."""

    def __init__(self, machine: Machine) -> None:
        """Nothing is imported before something is computed."""
        self._machine = machine
        self._settled: Arithmetic | None = None
        self._lock = threading.Lock()
        self._measured = Measured(0.0, 0.0)

    @property
    def _arithmetic(self) -> Arithmetic:
        if self._settled is None:
            self._settled = arithmetic(self._machine, Precision.FLOAT64, TILE_ELEMENTS)
        return self._settled

    def spectra(self, deltas: Sequence[Delta]) -> list[Spectra]:
        """Singular values of every delta, several deltas at a time."""
        with ThreadPoolExecutor(self._arithmetic.workers) as pool:
            return list(pool.map(self._spectrum, deltas))

    def _spectrum(self, delta: Delta) -> Spectra:
        import torch

        scaling = abs(delta.terms.scaling)
        with torch.inference_mode():
            return tuple(
                tuple(value * scaling for value in singular_values(left, right))
                for left, right in self.products(delta)
            )

    def products(self, delta: Delta) -> Iterator[Pair]:
        """Unscaled (out, r) and (r, in) of the delta, or of each of its experts."""
        factors = {role: self.factor(ref) for role, ref in delta.roles.items()}
        for expert in range(delta.terms.experts) if delta.terms.experts else (None,):
            yield _product(delta, factors, expert)

    def factor(self, ref: TensorRef) -> torch.Tensor:
        """One factor in float64 on the device; InputError where it is not finite."""
        values = load(ref)
        check_finite(ref, values)
        return values.to(device=self._arithmetic.device).double()

    def truncated(self, delta: Delta, rank: int) -> Mapping[str, TensorRef]:
        """B' and A', the best approximation of B A at `rank`, as LoRA stores them."""

        def make() -> Factors:
            pairs = []
            for left, right in self.products(delta):
                best = truncated(left, right, rank)
                pairs.append((best.left, best.right))
            return stored_factors(pairs, delta.terms)

        parents = list(delta.roles.values())
        return computed(make, parents, stored_shapes(delta.terms, rank))

    def factored(self, delta: Delta) -> Delta:
        """B and A of the product itself, or the best there is where they are wider than it."""
        import torch

        with torch.inference_mode():
            rank = next(self.products(delta))[1].shape[0]
        # A module that was pruned away has rank 0: LoRA's factors have at least one.
        wanted = max(1, min(rank, delta.terms.out, delta.terms.inner))
        terms = replace(delta.terms, rank=wanted, alpha=None, conventions={})
        plain = replace(delta, tuner="lora", terms=terms)
        if rank != wanted:
            return replace(plain, roles=self.truncated(delta, wanted))
        roles = computed(
            lambda: stored_factors(list(self.products(delta)), terms),
            list(delta.roles.values()),
            stored_shapes(terms, rank),
        )
        return replace(plain, roles=roles)

    def mixed(self, mixture: Mixture) -> Mapping[str, TensorRef]:
        """The factors that a method of `combinations/` makes, for a scaling of 1."""
        terms = mixture.parts[0].delta.terms

        def make() -> Factors:
            return stored_factors(self._merged(mixture), terms)

        parents = [ref for part in mixture.parts for ref in part.delta.roles.values()]
        return computed(make, parents, stored_shapes(terms, mixture.rank))

    def _merged(self, mixture: Mixture) -> list[Pair]:
        """One pair of factors, or one for each expert."""
        streams = [self.products(part.delta) for part in mixture.parts]
        experts = mixture.parts[0].delta.terms.experts
        names = [f"{mixture.parameter}[{expert}]" for expert in range(experts)]
        pairs = []
        for name, products in zip(
            names or [mixture.parameter], zip(*streams, strict=True), strict=True
        ):
            found = combined(mixture.method, _factored(mixture, products), mixture.options, name)
            self._note(mixture, products, found)
            pairs.append((found.left, found.right))
        return pairs

    def _note(self, mixture: Mixture, products: Sequence[Pair], found: Combined) -> None:
        """Enter a result's error: relative to the exact sum for `linear`, else to what was cut."""
        kept = _squared_norm(found.left, found.right)
        if mixture.method == "linear":
            parts = _factored(mixture, products)
            lefts = [part.left * part.weight for part in parts]
            norm = _squared_norm(*_joined(lefts, [part.right for part in parts]))
        else:  # an orthogonal projection: what is kept and what is cut add up
            norm = kept / max(1e-300, 1.0 - min(found.relative_error, 1.0) ** 2)
        error = found.relative_error**2 * norm if norm else kept
        with self._lock:
            self._measured = Measured(self._measured.error + error, self._measured.norm + norm)

    def measured(self) -> Measured:
        """The errors of all mixtures that were computed so far."""
        return self._measured


def _product(delta: Delta, factors: Factors, expert: int | None) -> Pair:
    """MismatchError where the delta is no product of its factors alone."""
    try:
        return cast("LowRank", tuners()[delta.tuner]).product_factors(factors, delta.terms, expert)
    except InputError as error:
        if error.code is not Code.UNSUPPORTED:
            raise
        hint = "merge it into its base, and extract a LoRA from the merged model"
        raise MismatchError(
            error.message, code=Code.NOT_LOW_RANK, tensor=delta.parameter, hint=hint
        ) from error


def _factored(mixture: Mixture, products: Sequence[Pair]) -> list[Factored]:
    return [
        Factored(
            left * part.delta.terms.scaling,
            right,
            part.weight,
            part.place,
            part.delta.terms.scaling,
        )
        for part, (left, right) in zip(mixture.parts, products, strict=True)
    ]


def _joined(lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor]) -> Pair:
    import torch

    return torch.cat(list(lefts), dim=1), torch.cat(list(rights))


def _squared_norm(left: torch.Tensor, right: torch.Tensor) -> float:
    values = core(left, right)
    return float((values * values).sum())
