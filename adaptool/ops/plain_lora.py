"""Adapters brought to plain LoRA form.

Other kinds by the factors of their product; those whose initialisation changed the base by the
difference to the initial adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.algebra import Algebra, Measured
from adaptool.model.derived import F32
from adaptool.model.resize_options import ResizeOptions
from adaptool.ops.based import Based, changes, sized
from adaptool.ops.factor_sums import Summand, factor_sum
from adaptool.ops.low_rank import has_factors, lora_config
from adaptool.ops.resize import Resized, carried, resized, written

PLAIN = frozenset({"lora", "shift"})
INITIALISED = frozenset({"pissa", "olora"})


def subtracted(adapter: Adapter, initial: Adapter) -> Adapter:
    """The adapter for the unmodified base: s B A - s B0 A0, of twice the rank.

    Training began at W - s B0 A0 (PiSSA, OLoRA, CorDA, LoRA-GA). Only signs change, so the factors
    stay exact in their dtype. Source: PEFT 0.21.2, `subtract_mutated_init`.
    """
    if adapter.changed_base is None:
        message = "its initialisation did not change the base: there is nothing to subtract"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=adapter.name)
    begun = {delta.parameter: delta for delta in initial.deltas if has_plain_factors(delta)}
    trained = {delta.parameter for delta in adapter.deltas if has_plain_factors(delta)}
    if trained != begun.keys():
        only = sorted(trained ^ begun.keys())
        message = f"{len(only)} modules stand in one of the two adapters only, such as {only[0]}"
        raise MismatchError(message, code=Code.MODULE_NOT_IN_BASE, file=initial.name)
    deltas = tuple(
        _difference(delta, begun[delta.parameter]) if delta.parameter in begun else delta
        for delta in adapter.deltas
    )
    return replace(adapter, deltas=deltas, changed_base=None, config=lora_config(adapter.config))


def has_plain_factors(delta: Delta) -> bool:
    """Whether the delta is stored as LoRA's own factors."""
    return delta.tuner in {"lora", *INITIALISED}


def _difference(delta: Delta, begun: Delta) -> Delta:
    """[B, -(s0 / s) B0] [A; A0] under the scaling s; at s0 = s every value keeps its bits."""
    scaling = delta.terms.scaling
    ratio = begun.terms.scaling / scaling if scaling else 0.0
    made = factor_sum([Summand(_unscaled(delta), 1.0), Summand(_unscaled(begun), -ratio)])
    refs = [*delta.roles.values(), *begun.roles.values()]
    widest = max((ref.dtype for ref in refs), key=lambda dtype: dtype.bits)
    return replace(
        made,
        terms=replace(made.terms, scaling=scaling),
        dtype=widest if ratio == 1.0 or widest.bits > F32.bits else F32,
    )


def _unscaled(delta: Delta) -> Delta:
    return replace(delta, tuner="lora", terms=replace(delta.terms, scaling=1.0))


def as_plain_lora(
    adapter: Adapter, options: ResizeOptions | None, algebra: Algebra, based: Based | None = None
) -> Resized:
    """Every module as LoRA factors, at the rank that `options` gives (None: exactly).

    Deltas that are no product of thin factors are taken through the base, where there is one;
    their errors are the extractor's to tell, once they were computed. MismatchError names the
    modules that cannot be had so.
    """
    adapter = sized(adapter, based.base) if based is not None else adapter
    thick = [delta for delta in adapter.deltas if is_thick(delta)]
    rule = options or ResizeOptions(energy=1.0)
    if not thick:
        return resized(adapter, rule, algebra)
    if based is None:
        hint = "--base BASE --rank N takes them through the base"
        raise _refusal(adapter, thick, "are no product of thin factors", hint)
    if options is None:
        hint = "--rank N, or --energy F"
        raise _refusal(adapter, thick, "change the base by a full rank: none is exact", hint)
    made = _through_base(adapter, thick, options, based)
    rest = replace(adapter, deltas=tuple(delta for delta in adapter.deltas if not is_thick(delta)))
    done = _others(rest, rule, algebra)
    others = iter(done.adapter.deltas)
    found = [made.get(id(delta)) if is_thick(delta) else next(others) for delta in adapter.deltas]
    deltas = tuple(delta for delta in found if delta is not None)
    message = f"{_named(thick)} are written as LoRA: what they change in {based.base.name}"
    note = Finding(Code.WRITTEN_AS_LORA, Severity.NOTE, message, file=adapter.name)
    config = {**done.adapter.config, "use_dora": False} if done.adapter.config else {}
    whole = replace(done.adapter, deltas=deltas, config=config)
    return replace(done, adapter=whole, findings=(*done.findings, note))


def is_thick(delta: Delta) -> bool:
    """Whether the delta has no thin factors: DoRA's, and what scales or rotates W."""
    return delta.tuner not in PLAIN and not is_expressible(delta)


def is_expressible(delta: Delta) -> bool:
    """Whether the whole delta is a product of thin factors (DoRA's direction alone is not)."""
    return has_factors(delta) and delta.tuner != "dora"


def _through_base(
    adapter: Adapter, thick: Sequence[Delta], options: ResizeOptions, based: Based
) -> Mapping[int, Delta]:
    """LoRA factors by the delta's id; none for optional ones that the base lacks."""
    found = changes(based.base, [(adapter, 1.0)], [delta.parameter for delta in thick])
    energy = options.energy or 1.0
    return {
        id(delta): based.factored(
            [delta], found[delta.parameter], options.dtype, options.rank, energy
        )
        for delta in thick
        if delta.parameter in found
    }


def _others(rest: Adapter, rule: ResizeOptions, algebra: Algebra) -> Resized:
    """What has factors by the rule; `resized` refuses where nothing has."""
    if any(map(has_factors, rest.deltas)):
        return resized(rest, rule, algebra)
    kept = [carried(delta, rule.dtype) for delta in rest.deltas]
    return Resized(written(rest, kept, rule.dtype), (), Measured(0.0, 0.0), ())


def _refusal(adapter: Adapter, thick: Sequence[Delta], why: str, hint: str) -> MismatchError:
    return MismatchError(
        f"{_named(thick)} {why}",
        code=Code.NOT_LOW_RANK,
        file=adapter.name,
        tensor=thick[0].parameter,
        hint=hint,
    )


def _named(thick: Sequence[Delta]) -> str:
    kinds = ", ".join(sorted({delta.tuner for delta in thick}))
    return f"{len(thick)} modules ({kinds})"
