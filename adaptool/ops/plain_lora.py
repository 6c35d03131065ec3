"""Adapters brought to plain LoRA form.

Other kinds by the factors of their product; those whose initialisation changed the base by the
difference to the initial adapter.
"""

from __future__ import annotations

from dataclasses import replace

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.algebra import Algebra
from adaptool.model.derived import F32
from adaptool.model.resize_options import ResizeOptions
from adaptool.ops.factor_sums import Summand, factor_sum
from adaptool.ops.low_rank import has_factors, lora_config
from adaptool.ops.resize import Resized, resized

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


def as_plain_lora(adapter: Adapter, options: ResizeOptions, algebra: Algebra) -> Resized:
    """Every module as LoRA factors, at the rank that `options` gives (energy 1: exactly).

    MismatchError names the modules whose delta is no product of thin factors.
    """
    rest = [
        delta for delta in adapter.deltas if delta.tuner not in PLAIN and not is_expressible(delta)
    ]
    if rest:
        kinds = ", ".join(sorted({delta.tuner for delta in rest}))
        message = f"{len(rest)} modules ({kinds}) are no product of thin factors"
        hint = "merge them into the base and extract a LoRA of the rank you need"
        raise MismatchError(
            message,
            code=Code.NOT_LOW_RANK,
            file=adapter.name,
            tensor=rest[0].parameter,
            hint=hint,
        )
    return resized(adapter, options, algebra)


def is_expressible(delta: Delta) -> bool:
    """Whether the whole delta is a product of thin factors (DoRA's direction alone is not)."""
    return has_factors(delta) and delta.tuner != "dora"
