"""Tensors that adapters bring whole: averaged where all have them, refused elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from adaptool.errors import AdaptoolError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Replaced
from adaptool.model.derived import weighted_sum
from adaptool.model.options import OutputDtype
from adaptool.ops.low_rank import written_dtype


class Part(Protocol):
    """An adapter and its weight."""

    @property
    def adapter(self) -> Adapter:
        """The adapter."""
        ...

    @property
    def weight(self) -> float:
        """Its weight, not 0."""
        ...


Owner = tuple[float, Replaced, str]


def averaged(
    parts: Sequence[Part], updated: set[str], dtype: OutputDtype
) -> tuple[tuple[Replaced, ...], list[AdaptoolError]]:
    """Each replaced tensor of the combination, and what cannot be reconciled.

    sum w V / sum w where every adapter has it. One adapter alone may bring it at weight 1: that is
    W + 1 (V - W). Copies of the base stay what they are. `updated` are parameters that some
    adapter changes by a delta.
    """
    made: list[Replaced] = []
    errors: list[AdaptoolError] = []
    for parameter, owners in _owners(parts).items():
        copy = _copy(owners)
        if copy is not None:
            made.append(copy)
            continue
        problem = _contradiction(parameter, owners, len(parts), updated)
        if problem is None:
            made.append(_average(owners, dtype))
        else:
            errors.append(problem)
    return tuple(made), errors


def _owners(parts: Sequence[Part]) -> Mapping[str, list[Owner]]:
    found: dict[str, list[Owner]] = {}
    for part in parts:
        for item in part.adapter.replaced:
            owner = (part.weight, item, part.adapter.name)
            found.setdefault(item.parameter, []).append(owner)
    return found


def _copy(owners: Sequence[Owner]) -> Replaced | None:
    """A copy of the base that PEFT saved along: W whatever the weights; None where it is none."""
    items = [item for _, item, _ in owners]
    alike = len({item.value.shape for item in items}) == 1
    return items[0] if alike and all(item.copied_base for item in items) else None


def _contradiction(
    parameter: str, owners: Sequence[Owner], count: int, updated: set[str]
) -> AdaptoolError | None:
    weight, first, name = owners[0]
    message = None
    if parameter in updated and first.rows is None and not first.copied_base:
        message = "replaced by one adapter, updated by another's factors"
    elif len(owners) < count and not (len(owners) == 1 and weight == 1.0):
        what = f"{len(owners)} of {count} adapters bring it, at other weights than 1"
        message = f"{what}: an average needs all of them"
    elif len({item.value.shape for _, item, _ in owners}) > 1:
        shapes = ", ".join(str(list(item.value.shape)) for _, item, _ in owners)
        message = f"shapes {shapes} cannot be averaged"
    elif len({item.rows for _, item, _ in owners}) > 1:
        message = "the adapters trained different token rows"
    elif sum(weight for weight, _, _ in owners) == 0:
        message = "the weights add up to 0, so there is no average"
    return None if message is None else _refusal(name, parameter, message)


def _refusal(name: str, parameter: str, message: str) -> MismatchError:
    hint = "merge them one after the other: merge BASE A OUT --add B"
    return MismatchError(
        message, code=Code.REPLACED_CONTRADICT, file=name, tensor=parameter, hint=hint
    )


def _average(owners: Sequence[Owner], dtype: OutputDtype) -> Replaced:
    first = owners[0][1]
    total = sum(weight for weight, _, _ in owners)
    values = [item.value for _, item, _ in owners]
    if len(owners) == 1:
        return replace(first, dtype=written_dtype(values, dtype))
    value = weighted_sum([(weight / total, item.value) for weight, item, _ in owners])
    return replace(first, value=value, dtype=written_dtype(values, dtype))
