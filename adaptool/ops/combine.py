"""Several adapters as one: a weighted sum of deltas, exact or by a method of `combinations/`.

A parameter that an adapter lacks counts as no change there. What is no delta (saved modules,
biases, token rows) is summed by what it changes, which takes the base unless weights add up to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from adaptool.combinations import methods
from adaptool.combinations.merging import check_options
from adaptool.combinations.method import Majority, Options, Space
from adaptool.errors import AdaptoolError, MismatchError, UsageError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts.pipeline_families import common
from adaptool.model.adapter import Adapter, Delta, Form, Terms
from adaptool.model.algebra import Algebra, Mixture, Weighted
from adaptool.model.based import Change
from adaptool.model.combine_options import CombineOptions
from adaptool.names.families import model_types
from adaptool.ops.base_tensors import BaseTensors
from adaptool.ops.based import Based, changes, sized
from adaptool.ops.combined_config import combined_config, config_notes
from adaptool.ops.combined_shifts import SHIFT, combined_shifts, with_every_bias
from adaptool.ops.combined_tensors import combined_tensors, whole_notes
from adaptool.ops.factor_sums import Summand, factor_sum
from adaptool.ops.low_rank import refuse_changed_base, written_dtype
from adaptool.ops.plain_lora import is_thick
from adaptool.ops.targeted_alike import targeted_alike

# Seconds an element and worker that methods on whole deltas took where they were measured.
SECONDS_AN_ELEMENT = 3e-7


@dataclass(frozen=True, slots=True)
class Entry:
    """One adapter of a combination: `place` is its position in the command line."""

    adapter: Adapter
    weight: float
    place: int


@dataclass(frozen=True, slots=True)
class Combined:
    """The combined adapter; `exact` where nothing but rounding separates it from the sum.

    `through_base`: values of the base's went into the result, which they then decide.
    """

    adapter: Adapter
    exact: bool
    findings: tuple[Finding, ...]
    through_base: bool


def combined(
    adapters: Sequence[Adapter],
    options: CombineOptions,
    algebra: Algebra,
    based: Based | None = None,
) -> Combined:
    """The combination of `adapters` at `options.weights`.

    With a base, modules where a delta is no product of factors are summed as what they change in
    its weights, and that is factored; the errors are then the extractor's to tell.
    UsageError for options that the method cannot use; MismatchError (exit 4), carrying every
    other misfit, where the adapters do not fit each other.
    """
    method = _method(options)
    entries = [
        Entry(adapter if based is None else sized(adapter, based.base), weight, place)
        for place, (adapter, weight) in enumerate(zip(adapters, options.weights, strict=True))
        if weight != 0
    ]
    _check(entries, method, based)
    groups = _groups(entries)
    through_base = _through_base(entries, groups, based)
    whole = combined_tensors(entries, set(groups), options.dtype, _own_tensors(entries, based))
    exact = method == "cat"
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    kinds = None if based is None else model_types(based.base.config)
    for parameter, parts in groups.items():
        try:
            group = targeted_alike(parts, kinds)
            change = through_base.get(parameter)
            if change is not None and based is not None:
                own = [part.delta for part in group]
                deltas.append(based.factored(own, change, options.dtype, options.rank))
            elif not all(is_thick(part.delta) for part in group):
                made = _module(parameter, group, method, options, algebra)
                _check_sized(made)
                deltas.append(made)
        except MismatchError as error:
            errors.append(error)
    if errors or whole.errors:
        raise gathered([*errors, *whole.errors])
    deltas += _shifts(entries, deltas, options)
    first = entries[0].adapter
    whole_adapter = replace(
        first,
        config=combined_config([entry.adapter for entry in entries]),
        deltas=tuple(deltas),
        replaced=whole.replaced,
        dropped=tuple(sorted({name for entry in entries for name in entry.adapter.dropped})),
        findings=(),
        architectures=common([entry.adapter.architectures for entry in entries]),
    )
    notes = (
        *config_notes([entry.adapter for entry in entries]),
        *whole_notes(whole.replaced),
        *_notes(method, deltas),
    )
    return Combined(whole_adapter, exact, notes, bool(through_base) or whole.on_base)


def _method(options: CombineOptions) -> str:
    """The method's name; `cat` at a rank is `svd`. UsageError where it is unknown."""
    if options.method not in methods():
        message = f"{options.method!r} is none of {', '.join(sorted(methods()))}"
        raise UsageError(message, code=Code.USAGE, field="--method")
    method = "svd" if options.method == "cat" and options.rank is not None else options.method
    check_options(method, _combine_options(options))
    return method


def _combine_options(options: CombineOptions) -> Options:
    known = [str(kind) for kind in Majority]
    if options.majority_sign not in known:
        message = f"{options.majority_sign!r} is none of {', '.join(known)}"
        raise UsageError(message, code=Code.USAGE, field="--majority-sign")
    return Options(options.rank, options.density, Majority(options.majority_sign), options.seed)


def _check(entries: Sequence[Entry], method: str, based: Based | None) -> None:
    """Every misfit that has nothing to do with one module."""
    errors: list[AdaptoolError] = []
    for entry in entries:
        try:
            refuse_changed_base(entry.adapter, "combining it")
            _refuse_thick(entry.adapter, method, based)
        except MismatchError as error:
            errors.append(error)
    if len({entry.adapter.layer_replication for entry in entries}) > 1:
        message = "the adapters replicate the base's layers differently"
        errors.append(MismatchError(message, code=Code.UNSUPPORTED, field="layer_replication"))
    if errors:
        raise gathered(errors)


def _refuse_thick(adapter: Adapter, method: str, based: Based | None) -> None:
    """MismatchError where a delta is no product of thin factors, unless a base helps."""
    thick = [delta for delta in adapter.deltas if is_thick(delta)]
    if not thick or (based is not None and method == "svd"):
        return
    kinds = ", ".join(sorted({delta.tuner for delta in thick}))
    why = "DoRA scales whole rows of W + BA" if "dora" in kinds else "their deltas have no factors"
    message = f"{len(thick)} {kinds} modules cannot be summed without the base: {why}"
    hint = "--base BASE --rank N takes them through the base"
    if based is not None:
        message = f"{len(thick)} {kinds} modules have no factors, which {method} needs"
        hint = "--rank N is the best sum of that rank"
        if method != "cat":
            hint = f"{_CONVERT}, then combine what that writes by {method}"
    raise MismatchError(
        message,
        code=Code.NOT_LOW_RANK,
        file=adapter.name,
        tensor=thick[0].parameter,
        hint=hint,
    )


_CONVERT = "first: adaptool convert ADAPTER OUT --to lora --base BASE --rank N"


def _through_base(
    entries: Sequence[Entry], groups: Mapping[str, Sequence[Weighted]], based: Based | None
) -> Mapping[str, Change]:
    """The modules that only a base can sum, on it."""
    thick = [
        parameter
        for parameter, group in groups.items()
        if any(is_thick(part.delta) for part in group)
    ]
    if based is None or not thick:
        return {}
    summands = [(entry.adapter, entry.weight) for entry in entries]
    return changes(based.base, summands, thick)


def _own_tensors(entries: Sequence[Entry], based: Based | None) -> BaseTensors | None:
    """The base's own tensors, where there is a base and somebody replaces any."""
    if based is None or not any(entry.adapter.replaced for entry in entries):
        return None
    return BaseTensors(based.base, entries[0].adapter)


def _groups(entries: Sequence[Entry]) -> dict[str, list[Weighted]]:
    """Parameter -> the deltas that update it, in the adapters' order."""
    groups: dict[str, list[Weighted]] = {}
    for entry in entries:
        for delta in entry.adapter.deltas:
            if delta.tuner != SHIFT:
                part = Weighted(delta, entry.weight, entry.place)
                groups.setdefault(delta.parameter, []).append(part)
    return groups


def _module(
    parameter: str,
    group: Sequence[Weighted],
    method: str,
    options: CombineOptions,
    algebra: Algebra,
) -> Delta:
    """One module's combined delta as LoRA factors."""
    refs = [ref for part in group for ref in part.delta.roles.values()]
    dtype = written_dtype(refs, options.dtype)
    if method == "cat":
        summands = [_summand(part, algebra) for part in group]
        return replace(factor_sum(summands), dtype=dtype)
    group = _one_of_each(group, algebra)
    first = group[0].delta
    _check_shapes(group)
    rank = options.rank or first.terms.rank or 1
    if options.rank is None:
        _check_ranks(group, method)
    mixture = Mixture(parameter, tuple(group), method, _combine_options(options), rank)
    return replace(
        first,
        tuner="lora",
        roles=algebra.mixed(mixture),
        terms=_plain_terms(first.terms, rank),
        dtype=dtype,
    )


def _check_sized(made: Delta) -> None:
    """MismatchError where the factors have no size: FourierFT's, say, is the base's to tell."""
    if not all(ref.elements for ref in made.roles.values()):
        message = "its size stands in none of the adapter's tensors"
        hint = "--base BASE (its headers tell)"
        raise MismatchError(message, code=Code.NOT_LOW_RANK, tensor=made.parameter, hint=hint)


def _summand(part: Weighted, algebra: Algebra) -> Summand:
    """The part as LoRA factors: its own, or made where its kind has others."""
    dense = not any(name.startswith("blocks") for name in part.delta.terms.conventions)
    if part.delta.tuner == "lora" and dense:
        return Summand(part.delta, part.weight)
    return Summand(algebra.factored(part.delta), part.weight)


def _one_of_each(group: Sequence[Weighted], algebra: Algebra) -> list[Weighted]:
    """One delta of each adapter: those that change a weight by several have one vote too."""
    made: list[Weighted] = []
    for _, parts in groupby(group, key=lambda part: part.place):
        same = list(parts)
        if len(same) > 1:
            own = [_summand(replace(part, weight=1.0), algebra) for part in same]
            same = [replace(same[0], delta=factor_sum(own))]
        made += same
    return made


def _check_shapes(group: Sequence[Weighted]) -> None:
    first = group[0].delta.terms
    for part in group[1:]:
        terms = part.delta.terms
        axes = [each.conventions.get("axes") for each in (first, terms)]
        if (terms.form, terms.out, terms.inner, terms.experts, terms.kernel, axes[1]) != (
            first.form,
            first.out,
            first.inner,
            first.experts,
            first.kernel,
            axes[0],
        ):
            message = (
                f"{[terms.out, terms.inner]} in one adapter, {[first.out, first.inner]} in another"
            )
            hint = "adapters of different base models cannot be combined"
            raise MismatchError(
                message, code=Code.SHAPE_MISMATCH, tensor=part.delta.parameter, hint=hint
            )


def _check_ranks(group: Sequence[Weighted], method: str) -> None:
    ranks = sorted({part.delta.terms.rank or 0 for part in group})
    if len(ranks) > 1:
        message = f"ranks {ranks}; {method} averages factors, which must be of one rank"
        hint = "use --method cat, or --method svd --rank N: they take any ranks"
        raise MismatchError(
            message, code=Code.RANK_MISMATCH, tensor=group[0].delta.parameter, hint=hint
        )


def _plain_terms(terms: Terms, rank: int) -> Terms:
    kept = {
        name: value
        for name, value in terms.conventions.items()
        if name in {"packing", "axes", "parameter"}
    }
    return replace(terms, rank=rank, scaling=1.0, alpha=None, conventions=kept)


def _shifts(
    entries: Sequence[Entry], deltas: Sequence[Delta], options: CombineOptions
) -> list[Delta]:
    """The plain differences of all adapters; where PEFT reads them, one for every module."""
    parts = [
        (entry.weight, delta)
        for entry in entries
        for delta in entry.adapter.deltas
        if delta.tuner == SHIFT
    ]
    made = list(combined_shifts(parts, deltas, options.dtype))
    if any(entry.adapter.config.get("lora_bias") for entry in entries):
        made += with_every_bias([*deltas, *made])
    return made


def _notes(method: str, deltas: Sequence[Delta]) -> Iterator[Finding]:
    if method == "linear":
        message = "linear averages the factors, as PEFT does: (sum of B) (sum of A) is not the sum"
        hint = "--method cat is the exact sum, --method svd --rank N the best of a rank"
        yield Finding(Code.FACTORS_AVERAGED, Severity.WARNING, message, hint=hint)
    if methods()[method].METHOD.space is Space.DELTA:
        elements = sum(
            delta.terms.out * delta.terms.inner * max(1, delta.terms.experts)
            for delta in deltas
            if delta.terms.form is not Form.VECTOR
        )
        seconds = elements * SECONDS_AN_ELEMENT
        message = f"{method} looks at all {elements} elements: some {seconds:.0f} core seconds"
        yield Finding(Code.SLOW_METHOD, Severity.NOTE, message)
