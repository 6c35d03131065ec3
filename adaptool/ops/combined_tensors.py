"""Tensors that adapters bring whole, combined by what they change: W + sum of w (V - W).

That is sum of w V + (1 - sum of w) W. The base is needed wherever the weights of those that bring a
tensor do not add up to 1; nothing is divided, so no value lies outside of what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from adaptool.dtypes import Dtype
from adaptool.errors import AdaptoolError, MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter, Replaced
from adaptool.model.derived import joined, weighted_sum
from adaptool.model.elementwise import elementwise
from adaptool.model.options import OutputDtype
from adaptool.ops.base_tensors import BaseTensors
from adaptool.ops.low_rank import written_dtype
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

# Weights such as 0.7, 0.2 and 0.1 add up to 1 but for rounding.
ROUNDING = 1e-12


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


@dataclass(frozen=True, slots=True)
class Owner:
    """An adapter's tensor, its weight, and the adapter's name."""

    weight: float
    item: Replaced
    name: str


@dataclass(frozen=True, slots=True)
class Whole:
    """The combined tensors; `on_base`: the base's own went into some of them."""

    replaced: tuple[Replaced, ...]
    errors: list[AdaptoolError]
    on_base: bool


def combined_tensors(
    parts: Sequence[Part], updated: set[str], dtype: OutputDtype, base: BaseTensors | None
) -> Whole:
    """Each tensor that some adapter brings whole, and what cannot be reconciled.

    `updated` are parameters that some adapter changes by a delta. A tensor that every adapter took
    over from the base unchanged stays what it is.
    """
    made: list[Replaced] = []
    errors: list[AdaptoolError] = []
    summing = _Summing(updated, dtype, base)
    for owners in _owners(parts).values():
        try:
            made += summing.of(owners)
        except MismatchError as error:
            errors.append(error)
    return Whole(tuple(made), errors, summing.on_base)


def whole_notes(replaced: Sequence[Replaced]) -> Iterator[Finding]:
    """What became of whole tensors, where there are any but copies of the base."""
    trained = [item for item in replaced if not item.copied_base]
    if trained:
        message = (
            f"{len(trained)} tensors that adapters bring whole are summed by what they change: "
            "W + sum of w (V - W)"
        )
        first = trained[0].parameter
        yield Finding(Code.CARRIED_WHOLE, Severity.NOTE, message, tensor=first)


def _owners(parts: Sequence[Part]) -> Mapping[str, list[Owner]]:
    found: dict[str, list[Owner]] = {}
    for part in parts:
        for item in part.adapter.replaced:
            owner = Owner(part.weight, item, part.adapter.name)
            found.setdefault(item.parameter, []).append(owner)
    return found


class _Summing:
    """Sums of one parameter's tensors after the other."""

    def __init__(self, updated: set[str], dtype: OutputDtype, base: BaseTensors | None) -> None:
        self._updated, self._dtype, self._base = updated, dtype, base
        self.on_base = False

    def of(self, owners: Sequence[Owner]) -> Iterable[Replaced]:
        """The combined whole tensor, the combined token rows, or both."""
        copies = [owner for owner in owners if owner.item.copied_base]
        trained = [owner for owner in owners if not owner.item.copied_base]
        whole = [owner for owner in trained if owner.item.rows is None]
        rows = [owner for owner in trained if owner.item.rows is not None]
        self._check(whole, rows)
        copy = _agreed(copies) if copies else None
        if whole:
            yield self._whole(whole, copy)
        elif copy is not None:
            dtype = self._written([owner.item.value for owner in copies])
            yield replace(copies[0].item, value=copy, dtype=dtype)
        if rows:
            yield self._rows(rows, copy)

    def _check(self, whole: Sequence[Owner], rows: Sequence[Owner]) -> None:
        """MismatchError where one adapter brings the tensor, and another changes it in parts."""
        if whole and whole[0].item.parameter in self._updated:
            raise _refusal(whole[0], "replaced by one adapter, updated by another's factors")
        if rows and rows[0].item.parameter in self._updated:
            message = "token rows by one adapter, factors by another: PEFT cannot hold both"
            raise _refusal(rows[0], message)
        if whole and rows:
            raise _refusal(whole[0], "replaced by one adapter, token rows by another")

    def _whole(self, owners: Sequence[Owner], copy: TensorRef | None) -> Replaced:
        values = [owner.item.value for owner in owners]
        if len({value.shape for value in values}) > 1:
            shapes = ", ".join(str(list(value.shape)) for value in values)
            raise _refusal(owners[0], f"of the shapes {shapes}")
        terms = [(owner.weight, owner.item.value) for owner in owners]
        rest = _rest(owners)
        if rest:
            terms.append((rest, self._original(owners, rest, copy)))
        saved = any(owner.item.saved_module for owner in owners)
        return replace(
            owners[0].item, value=_sum(terms), saved_module=saved, dtype=self._written(values)
        )

    def _rows(self, owners: Sequence[Owner], copy: TensorRef | None) -> Replaced:
        """The rows of all adapters: each is trained by some of them."""
        tokens = [token for owner in owners for token in owner.item.rows or ()]
        values = [owner.item.value for owner in owners]
        if len({value.shape[1:] for value in values}) > 1:
            raise _refusal(owners[0], f"rows of {sorted({ref.shape[1] for ref in values})} numbers")
        made: list[TensorRef] = []
        for token in dict.fromkeys(tokens):
            having = [owner for owner in owners if token in (owner.item.rows or ())]
            terms = [(owner.weight, _row_of(owner.item, token)) for owner in having]
            rest = _rest(having)
            if rest:
                terms.append((rest, _row(self._original(having, rest, copy), token)))
            made.append(_sum(terms))
        first = owners[0].item
        whole = len(owners) == 1 and not _rest(owners)
        return replace(
            first,
            value=first.value if whole else joined(made, axis=0),
            rows=tuple(dict.fromkeys(tokens)),
            dtype=self._written(values),
        )

    def _written(self, values: Sequence[TensorRef]) -> Dtype:
        return written_dtype(values, self._dtype)

    def _original(self, owners: Sequence[Owner], rest: float, copy: TensorRef | None) -> TensorRef:
        """W: a copy that an adapter brought along, or the base's own."""
        first = owners[0]
        if copy is not None:
            return self._fitting(first, copy)
        said = f"the weights of those that bring it add up to {1.0 - rest:g}, not to 1"
        if self._base is None:
            message = f"{said}: what they change is not known without the base"
            raise _refusal(first, message, hint="--base BASE")
        found = self._base.like(first.item)
        if found is None:
            raise _refusal(first, f"{said}, and the base has no such tensor", hint=_ADD_UP)
        self.on_base = True
        return self._fitting(first, found)

    @staticmethod
    def _fitting(owner: Owner, found: TensorRef) -> TensorRef:
        value = owner.item.value
        same = found.shape[1:] == value.shape[1:]
        if not same or (owner.item.rows is None and found.shape != value.shape):
            message = f"{list(value.shape)} here, {list(found.shape)} in the base"
            message += ": the change has no weight other than 1"
            raise _refusal(owner, message, code=Code.WEIGHT_NEEDS_ONE, hint=_ADD_UP)
        if max(owner.item.rows or (0,)) >= found.shape[0]:
            message = f"row {max(owner.item.rows or (0,))} of a base of {found.shape[0]} rows"
            raise _refusal(owner, message, code=Code.WEIGHT_NEEDS_ONE, hint=_ADD_UP)
        return found


_ADD_UP = "give weights that add up to 1 over the adapters that bring it"


def _rest(owners: Sequence[Owner]) -> float:
    """What of W stays: 1 - the sum of weights, 0 where that is only rounding."""
    rest = 1.0 - math.fsum(owner.weight for owner in owners)
    return 0.0 if abs(rest) <= ROUNDING else rest


def _sum(terms: Sequence[tuple[float, TensorRef]]) -> TensorRef:
    """The weighted sum; the tensor itself where it is one of weight 1."""
    (weight, value), *others = terms
    return value if not others and weight == 1.0 else weighted_sum(terms)


def _row(ref: TensorRef, place: int) -> TensorRef:
    """Row `place` of a matrix, as a matrix."""
    length = ref.length // ref.shape[0]
    offset = ref.offset + place * length
    return TensorRef(ref.name, ref.dtype, (1, *ref.shape[1:]), offset, length, ref.source)


def _row_of(item: Replaced, token: int) -> TensorRef:
    return _row(item.value, (item.rows or ()).index(token))


def _agreed(copies: Sequence[Owner]) -> TensorRef:
    """The base's tensor as all copies have it; reading it raises MismatchError where they differ.

    Copies differ where vocabularies were resized apart: the new rows are then each adapter's own.
    """
    refs = [owner.item.value for owner in copies]
    if len(refs) == 1:
        return refs[0]
    message = "copies of the base's tensor that differ: the adapters were trained on other ones"
    refusal = _refusal(copies[1], message)
    if len({ref.shape for ref in refs}) > 1:
        raise refusal

    def make(values: Sequence[Array]) -> Array:
        if any((value != values[0]).any() for value in values[1:]):
            raise refusal
        return values[0]

    return elementwise(refs, make)


def _refusal(
    owner: Owner, message: str, code: Code = Code.REPLACED_CONTRADICT, hint: str | None = None
) -> MismatchError:
    return MismatchError(
        message,
        code=code,
        file=owner.name,
        tensor=owner.item.parameter,
        hint=hint or "merge them one after the other: merge BASE A OUT --add B",
    )
