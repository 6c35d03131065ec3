"""Plain differences of several adapters, summed parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.derived import F32, weighted_sum, zeros
from adaptool.model.options import OutputDtype
from adaptool.ops.low_rank import written_dtype

SHIFT = "shift"
# PEFT's layers for these have no bias beside their factors, and refuse `lora_bias`.
UNBIASED = frozenset({Form.EMBEDDING, Form.EXPERTS})


def combined_shifts(
    parts: Sequence[tuple[float, Delta]], deltas: Sequence[Delta], dtype: OutputDtype
) -> Iterator[Delta]:
    """The weighted sum of `parts` for each parameter; `deltas` are the combined factors.

    The bias beside factors stands under the scaling that the factors have now, as PEFT scales it.
    MismatchError where one parameter's differences have several shapes.
    """
    scalings = {f"{delta.module}.bias": delta.terms.scaling for delta in deltas}
    groups: dict[str, list[tuple[float, Delta]]] = {}
    for weight, delta in parts:
        coefficient = weight * delta.terms.scaling
        groups.setdefault(delta.parameter, []).append((coefficient, delta))
    for parameter, group in groups.items():
        yield _summed(group, scalings.get(parameter, 1.0) or 1.0, dtype)


def _summed(group: Sequence[tuple[float, Delta]], scaling: float, dtype: OutputDtype) -> Delta:
    coefficient, first = group[0]
    refs = [delta.roles["difference"] for _, delta in group]
    if len({ref.shape for ref in refs}) > 1:
        message = f"differences of the shapes {', '.join(str(list(ref.shape)) for ref in refs)}"
        hint = "adapters of different base models cannot be combined"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=first.parameter, hint=hint)
    terms = [(part / scaling, ref) for (part, _), ref in zip(group, refs, strict=True)]
    alone = len(group) == 1 and coefficient == scaling
    return replace(
        first,
        roles={"difference": refs[0] if alone else weighted_sum(terms)},
        terms=replace(first.terms, scaling=scaling),
        dtype=written_dtype(refs, dtype),
    )


def with_every_bias(deltas: Sequence[Delta]) -> Iterator[Delta]:
    """Differences of 0 for the modules without one: PEFT's `lora_bias` is a switch for all.

    MismatchError where a module cannot have one.
    """
    biases = [delta for delta in deltas if delta.tuner == SHIFT]
    there = {delta.parameter for delta in biases}
    for delta in deltas if biases else ():
        name = f"{delta.module}.bias"
        if delta.tuner == SHIFT or name in there:
            continue
        if delta.terms.form in UNBIASED:
            message = f"PEFT has no lora_bias for it, and {biases[0].module} has one"
            hint = "merge them one after the other: merge BASE A OUT --add B"
            raise MismatchError(
                message, code=Code.LAYOUT_CANNOT_HOLD, tensor=delta.parameter, hint=hint
            )
        yield _zero(delta, name, biases[0])


def _zero(delta: Delta, name: str, like: Delta) -> Delta:
    size = delta.terms.out
    terms = Terms(Form.VECTOR, out=size, inner=1, scaling=delta.terms.scaling)
    none = zeros(name, F32, (size,))
    return Delta(delta.module, name, SHIFT, {"difference": none}, terms, dtype=like.dtype)
