"""Files that change one parameter twice: fused and in parts, or under two namings.

ComfyUI adds every patch of a weight, and so do merge and combine here: several LoRA deltas, or
several differences, are their sum. Joined factors are that sum exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Delta
from adaptool.model.derived import F32, joined, leaves, scaled, weighted_sum

_LORA, _SHIFT = "lora", "shift"


def summed(deltas: Iterable[Delta], file: str) -> tuple[tuple[Delta, ...], tuple[Finding, ...]]:
    """One delta for each parameter and kind, and a warning where several are one now.

    InputError for two that are no sum: DoRA's, those of other algorithms, or of different sizes.
    """
    groups: dict[str, dict[str, list[Delta]]] = {}
    for delta in deltas:
        groups.setdefault(delta.parameter, {}).setdefault(delta.tuner, []).append(delta)
    found: list[Delta] = []
    errors: list[AdaptoolError] = []
    for kinds in groups.values():
        for same in kinds.values():
            try:
                found.append(same[0] if len(same) == 1 else _sum(same, file))
            except AdaptoolError as error:
                errors.append(error)
    errors += [_twice(*each, file) for each in map(_of_two_kinds, groups.values()) if each]
    if errors:
        raise gathered(errors)
    several = [same for kinds in groups.values() for same in kinds.values() if len(same) > 1]
    return tuple(found), tuple(_note(several))


def _of_two_kinds(kinds: dict[str, list[Delta]]) -> tuple[Delta, Delta] | None:
    """Two deltas of which only one can be meant: a difference stands beside any other kind."""
    others = [same[0] for kind, same in kinds.items() if kind != _SHIFT]
    return (others[0], others[1]) if len(others) > 1 else None


def _sum(deltas: Sequence[Delta], file: str) -> Delta:
    first = deltas[0]
    for delta in deltas[1:]:
        if delta.tuner not in (_LORA, _SHIFT) or _kind(delta) != _kind(first):
            raise _twice(first, delta, file)
    if first.tuner == _SHIFT:
        return _sum_of_differences(deltas)
    scaling = first.terms.scaling or 1.0
    ups = [scaled(delta.roles["B"], delta.terms.scaling / scaling) for delta in deltas]
    roles = {"A": joined([delta.roles["A"] for delta in deltas], 0), "B": joined(ups, 1)}
    rank = sum(delta.terms.rank or 0 for delta in deltas)
    terms = replace(first.terms, rank=rank, scaling=scaling, alpha=None)
    return replace(first, roles=roles, terms=terms)


def _sum_of_differences(deltas: Sequence[Delta]) -> Delta:
    first = deltas[0]
    scaling = first.terms.scaling or 1.0
    parts = [(delta.terms.scaling / scaling, delta.roles["difference"]) for delta in deltas]
    terms = replace(first.terms, scaling=scaling)
    return replace(first, roles={"difference": weighted_sum(parts)}, terms=terms, dtype=F32)


def _kind(delta: Delta) -> tuple[object, ...]:
    terms = delta.terms
    axes = {role: len(ref.shape) for role, ref in delta.roles.items()}
    return terms.form, terms.out, terms.inner, terms.kernel, tuple(sorted(axes.items()))


def _twice(first: Delta, other: Delta, file: str) -> InputError:
    here, before = _name(other), _name(first)
    message = f"changes {other.parameter}, which {before!r} changes already"
    if other.tuner != _LORA or first.tuner != _LORA:
        message = f"{message}; {first.tuner} and {other.tuner} are no sum of two factors"
    hint = "the file says two things of one weight: leave one of them out of it"
    return InputError(message, code=Code.SLOT_TAKEN_TWICE, file=file, tensor=here, hint=hint)


def _name(delta: Delta) -> str:
    return next(leaf.name for ref in delta.roles.values() for leaf in leaves(ref))


def _note(several: Sequence[Sequence[Delta]]) -> Iterable[Finding]:
    if not several:
        return
    first, other = several[0][0], several[0][1]
    message = (
        f"{len(several)} parameters are changed by two tensors of the file, and both are applied: "
        f"{first.parameter} by {_name(first)!r} and {_name(other)!r}"
    )
    hint = "ComfyUI adds both; diffusers takes the second for a copy of the first"
    yield Finding(
        Code.SLOT_TAKEN_TWICE, Severity.WARNING, message, tensor=first.parameter, hint=hint
    )
