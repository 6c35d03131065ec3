"""Another rank for every module of an adapter: the best approximation there is.

Ranks are decided from the singular values; the factors are computed when they are written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts.peft_encode import looked_up
from adaptool.linalg.allocation import (
    Share,
    allotted,
    rank_for_energy,
    rank_for_error,
    rank_for_ratio,
    tails,
)
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.adapter_results import ResizedModule
from adaptool.model.algebra import Algebra, Measured, Spectra, total
from adaptool.model.options import OutputDtype
from adaptool.model.resize_options import ResizeOptions
from adaptool.ops.based import Based, changes, sized, with_other_deltas
from adaptool.ops.low_rank import as_lora, has_factors, refuse_changed_base, written_dtype
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Resized:
    """The adapter at its new ranks, and what that costs and saves."""

    adapter: Adapter
    modules: tuple[ResizedModule, ...]
    measured: Measured
    findings: tuple[Finding, ...]

    @property
    def relative_error(self) -> float:
        """Of all modules together."""
        return self.measured.relative


@dataclass(frozen=True, slots=True)
class _Module:
    """A delta that can be resized: its squares pooled over experts, the bounds of its rank."""

    delta: Delta
    squares: tuple[float, ...]
    rank: int

    @property
    def cost(self) -> int:
        """Elements that one more rank takes."""
        terms = self.delta.terms
        return (terms.out + terms.inner) * max(1, terms.experts)


def resized(
    adapter: Adapter, options: ResizeOptions, algebra: Algebra, based: Based | None = None
) -> Resized:
    """Every module at the rank that the rule gives it.

    With a base, DoRA's errors are those of the base's weights, and it tells sizes that stand in no
    tensor. MismatchError (exit 4) where nothing
    in the adapter has a rank, or where its initialisation changed the base: its factors alone are
    then not the update.
    """
    refuse_changed_base(adapter, "resize")
    adapter = sized(adapter, based.base) if based is not None else adapter
    modules = _modules(adapter, algebra)
    ranks = _ranks(modules, options, adapter)
    new = {
        id(module.delta): _at_rank(module, rank, options.dtype, algebra)
        for module, rank in zip(modules, ranks, strict=True)
    }
    made = written(
        adapter,
        [new.get(id(delta)) or carried(delta, options.dtype) for delta in adapter.deltas],
        options.dtype,
    )
    errors = [_truncation(module, rank) for module, rank in zip(modules, ranks, strict=True)]
    if based is not None:
        errors = _on_base(adapter, modules, new, errors, based)
    rows = [
        _row(module, rank, error)
        for module, rank, error in zip(modules, ranks, errors, strict=True)
    ]
    notes = _notes(modules, ranks, adapter, based)
    return Resized(made, tuple(rows), total(errors), notes)


def written(adapter: Adapter, deltas: Sequence[Delta], dtype: OutputDtype) -> Adapter:
    """The adapter as a LoRA of these deltas, its whole tensors in `dtype`."""
    return replace(
        as_lora(adapter),
        deltas=tuple(deltas),
        replaced=tuple(
            replace(item, dtype=written_dtype([item.value], dtype)) for item in adapter.replaced
        ),
    )


def _on_base(
    adapter: Adapter,
    modules: Sequence[_Module],
    new: Mapping[int, Delta],
    errors: Sequence[Measured],
    based: Based,
) -> list[Measured]:
    """DoRA's errors as |f'(W) - f(W)| and |f(W) - W|, which only the base tells."""
    scaled = {
        module.delta.parameter: new[id(module.delta)] for module in modules if _is_dora(module)
    }
    found = changes(based.base, [(adapter, 1.0)], scaled)
    pairs = [
        (change, with_other_deltas(change, {0: scaled[parameter]}))
        for parameter, change in found.items()
    ]
    measured = dict(zip(found, based.weights.errors(pairs), strict=True)) if pairs else {}
    return [
        measured.get(module.delta.parameter, error)
        for module, error in zip(modules, errors, strict=True)
    ]


def _is_dora(module: _Module) -> bool:
    return module.delta.tuner == "dora"


def _modules(adapter: Adapter, algebra: Algebra) -> list[_Module]:
    found = [delta for delta in adapter.deltas if has_factors(delta)]
    if not found:
        kinds = ", ".join(sorted({delta.tuner for delta in adapter.deltas})) or "no module"
        message = f"nothing here has a rank ({kinds})"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=adapter.name)
    return [
        _Module(delta, _pooled(spectra), _rank(delta, spectra))
        for delta, spectra in zip(found, algebra.spectra(found), strict=True)
    ]


def _pooled(spectra: Spectra) -> tuple[float, ...]:
    """Squared singular values, those of stacked experts summed: they share one rank."""
    columns = zip_longest(*spectra, fillvalue=0.0)
    return tuple(math.fsum(value * value for value in column) for column in columns)


def _rank(delta: Delta, spectra: Spectra) -> int:
    """The rank of the factors; of other kinds that of the product (LoHa's is the square of r)."""
    if delta.tuner in _STAYING and delta.terms.rank:
        return delta.terms.rank
    return max(1, *map(len, spectra))


def _ranks(modules: Sequence[_Module], options: ResizeOptions, adapter: Adapter) -> list[int]:
    (rule, value), *_ = options.rule.items()
    if rule in _PER_MODULE:
        wanted = [_PER_MODULE[rule](module.squares, value) for module in modules]
    else:
        wanted = allotted(_shares(modules, options), _budget(modules, options, adapter))
    low, high = options.min_rank, options.max_rank
    bounded = [
        min(max(rank, low), high or module.rank, module.rank)
        for rank, module in zip(wanted, modules, strict=True)
    ]
    return _shared(modules, bounded, max if rule in _PER_MODULE else min)


_EXPERT = re.compile(r"(?:^|\.)experts\.\d+\.")


def _shared(
    modules: Sequence[_Module], ranks: Sequence[int], choose: Callable[[list[int]], int]
) -> list[int]:
    """One rank for modules that PEFT looks up by one name (in_proj and out_proj of attention).

    And one for all experts that stand one by one: PEFT stacks them, at the rank of the config.
    """
    names = [
        "experts" if _EXPERT.search(module.delta.module) else looked_up(module.delta)
        for module in modules
    ]
    together: dict[str, list[int]] = {}
    for name, rank in zip(names, ranks, strict=True):
        together.setdefault(name, []).append(rank)
    return [choose(together[name]) for name in names]


def _fixed(_: Sequence[float], rank: float) -> int:
    return int(rank)


_PER_MODULE = {
    "rank": _fixed,
    "energy": rank_for_energy,
    "error": rank_for_error,
    "ratio": rank_for_ratio,
}


def _shares(modules: Sequence[_Module], options: ResizeOptions) -> list[Share]:
    return [
        Share(
            module.squares,
            module.cost,
            min(options.min_rank, module.rank),
            min(options.max_rank or module.rank, module.rank),
        )
        for module in modules
    ]


def _budget(modules: Sequence[_Module], options: ResizeOptions, adapter: Adapter) -> int:
    """Elements that the factors may have; MismatchError where the lowest ranks take more."""
    if options.keep is not None:
        budget = int(options.keep * sum(module.cost * module.rank for module in modules))
        given = f"--keep {options.keep:g} leaves {budget} parameters"
    else:
        sizes = [written_dtype(module.delta.roles.values(), options.dtype) for module in modules]
        widest = max(dtype.bits for dtype in sizes) // 8
        budget = ((options.budget or 0) - _other_bytes(adapter, options)) // widest
        given = f"--budget leaves {max(budget, 0)} parameters for the factors"
    least = sum(module.cost * min(options.min_rank, module.rank) for module in modules)
    if budget < least:
        message = f"{given}; rank {options.min_rank} everywhere takes {least}"
        hint = "allow more, or drop modules that are carried whole"
        raise MismatchError(message, code=Code.BUDGET_TOO_SMALL, file=adapter.name, hint=hint)
    return budget


# Per tensor in the header: quotes, dtype, shape, offsets; a pattern entry repeats the name.
_HEADER_BYTES = 160


def _other_bytes(adapter: Adapter, options: ResizeOptions) -> int:
    """What the file holds besides factors, at most: headers, patterns, tensors carried along."""
    named = sum(
        3 * len(delta.module.encode()) + _HEADER_BYTES
        for delta in adapter.deltas
        for _ in delta.roles
    )
    carried = [item.value for item in adapter.replaced]
    carried += [ref for delta in adapter.deltas if not has_factors(delta) for ref in _refs(delta)]
    carried += [
        ref
        for delta in adapter.deltas
        if has_factors(delta)
        for role, ref in delta.roles.items()
        if role in _KEPT_BESIDE
    ]
    return named + sum(
        ref.elements * written_dtype([ref], options.dtype).bits // 8
        + len(ref.name.encode())
        + _HEADER_BYTES
        for ref in carried
    )


# What a resized module keeps beside its new factors.
_KEPT_BESIDE = frozenset({"magnitude"})


def _refs(delta: Delta) -> Sequence[TensorRef]:
    return tuple(delta.roles.values())


def _truncation(module: _Module, rank: int) -> Measured:
    """What the product of factors loses, and what it had."""
    left = tails(module.squares)
    return Measured(left[min(rank, len(left) - 1)], left[0])


def _row(module: _Module, rank: int, error: Measured) -> ResizedModule:
    lost = _truncation(module, rank)
    return ResizedModule(
        module=module.delta.parameter.removesuffix(".weight"),
        rank_before=module.rank,
        rank_after=rank,
        relative_error=error.relative,
        energy=1.0 - (lost.error / lost.norm if lost.norm else 0.0),
    )


def _at_rank(module: _Module, rank: int, dtype: OutputDtype, algebra: Algebra) -> Delta:
    """The delta at `rank`; its own factors where the rank stays."""
    delta = module.delta
    if rank == module.rank and _is_plain(delta):
        return carried(delta, dtype)
    others = {role: ref for role, ref in delta.roles.items() if role in _KEPT_BESIDE}
    kept = {
        name: value for name, value in delta.terms.conventions.items() if name in _STAYING_SWITCHES
    }
    return replace(
        delta,
        tuner=delta.tuner if delta.tuner in _STAYING else "lora",
        roles={**algebra.truncated(delta, rank), **others},
        terms=replace(delta.terms, rank=rank, alpha=None, conventions=kept),
        dtype=written_dtype(delta.roles.values(), dtype),
    )


# Everything else that has factors becomes a plain LoRA.
_STAYING = frozenset({"lora", "dora"})
_STAYING_SWITCHES = frozenset({"packing", "axes", "parameter"})


def _is_plain(delta: Delta) -> bool:
    return delta.tuner in _STAYING and delta.terms.conventions.keys() <= _STAYING_SWITCHES


def carried(delta: Delta, dtype: OutputDtype) -> Delta:
    """The delta with its own factors, in `dtype`."""
    if dtype is OutputDtype.KEEP:
        return delta
    return replace(delta, dtype=written_dtype(delta.roles.values(), dtype))


def _notes(
    modules: Sequence[_Module], ranks: Sequence[int], adapter: Adapter, based: Based | None
) -> tuple[Finding, ...]:
    """What a reader of the result should know: nothing changed, other kinds became LoRA, DoRA."""
    found = []
    if all(rank == module.rank for rank, module in zip(ranks, modules, strict=True)):
        message = "every module has that rank or less already: the factors are as they were"
        found.append(Finding(Code.NOTHING_TO_DO, Severity.NOTE, message, file=adapter.name))
    others = {module.delta.tuner for module in modules} - _STAYING
    if others:
        message = f"{', '.join(sorted(others))} modules are written as plain LoRA"
        found.append(Finding(Code.WRITTEN_AS_LORA, Severity.NOTE, message, file=adapter.name))
    if based is None and any(map(_is_dora, modules)):
        message = "errors are of B A; DoRA's magnitudes are kept as they are"
        hint = "--base BASE measures what becomes of the base's weights"
        found.append(
            Finding(Code.DORA_DIRECTION, Severity.NOTE, message, file=adapter.name, hint=hint)
        )
    return tuple(found)
