"""Deltas on their way into a layout that stores some modules fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adaptool.dtypes import Dtype
from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.kohya_factors import INPUT_NORM, OUTPUT_NORM, PLAIN
from adaptool.layouts.kohya_metadata import HASHES
from adaptool.layouts.pipeline_homes import Home, Homes
from adaptool.model.adapter import Adapter, Delta, Form
from adaptool.model.derived import F32, F64, leaves, reshaped
from adaptool.model.encoding import Loss
from adaptool.model.fusing import Pair, fused
from adaptool.names.diffusion import Seat
from adaptool.store.adapter_files import METADATA_KEYS
from adaptool.store.tensors import TensorRef

_FACTORED = frozenset({PLAIN, OUTPUT_NORM, INPUT_NORM})
_NORMED = frozenset({OUTPUT_NORM, INPUT_NORM})
SHIFT = "shift"


@dataclass(frozen=True, slots=True)
class Group:
    """The deltas of one stored module, each at its part; None for a part without one."""

    name: str
    seat: Seat | None
    deltas: tuple[Delta | None, ...]

    @property
    def present(self) -> list[Delta]:
        """The parts that have a delta."""
        return [delta for delta in self.deltas if delta is not None]


def groups(deltas: Sequence[Delta], homes: Mapping[str, Home]) -> list[Group]:
    """The deltas by the module that they share, in order; those without a home are left out."""
    parts: dict[str, dict[int, Delta]] = {}
    seats: dict[str, Seat | None] = {}
    for delta in deltas:
        home = homes.get(delta.module)
        if home is not None:
            parts.setdefault(home.name, {})[home.part] = delta
            seats.setdefault(home.name, home.seat)
    return [
        Group(name, seat, tuple(parts[name].get(place) for place in range(_count(seat))))
        for name, seat in seats.items()
    ]


def _count(seat: Seat | None) -> int:
    return 1 if seat is None else len(seat.modules)


def factored(adapter: Adapter) -> list[Delta]:
    """The deltas that are a pair of factors."""
    return [delta for delta in adapter.deltas if delta.tuner in _FACTORED]


def shifts(adapter: Adapter, leaf: str) -> list[Delta]:
    """The plain differences of the modules' parameter `leaf`."""
    return [
        delta
        for delta in adapter.deltas
        if delta.tuner == SHIFT and delta.parameter == f"{delta.module}.{leaf}"
    ]


def losses_of(adapter: Adapter, homes: Homes, reason: Callable[[Delta], str]) -> tuple[Loss, ...]:
    """What has no place: deltas for a reason of the layout's or of theirs, and whole tensors."""
    reasons: dict[str, list[Delta]] = {}
    for delta in adapter.deltas:
        why = reason(delta) or _reason(delta, homes)
        if why:
            reasons.setdefault(why, []).append(delta)
    lost = {delta.parameter for deltas in reasons.values() for delta in deltas}
    kept = [delta for delta in factored(adapter) if delta.parameter not in lost]
    for group in groups(kept, homes.found):
        why = _cannot_join(group)
        if why:
            reasons.setdefault(why, []).extend(group.present)
    whole = tuple(item.value.name for item in adapter.replaced)
    return (
        *(Loss(_names(deltas), why) for why, deltas in reasons.items()),
        *([Loss(whole, "whole tensors replace the base's")] if whole else []),
    )


def _reason(delta: Delta, homes: Homes) -> str:
    if delta.module in homes.missing:
        return homes.missing[delta.module]
    if delta.module not in homes.found:
        return "the module is none of a diffusion pipeline known here"
    if delta.tuner not in {*_FACTORED, SHIFT}:
        return f"{delta.tuner} has no place"
    if delta.tuner == SHIFT:
        return "" if delta.parameter.startswith(f"{delta.module}.") else "a shift of another module"
    if delta.terms.form not in (Form.LINEAR, Form.CONVOLUTION) or delta.terms.conventions:
        return f"a delta of this form ({delta.terms.form}) has no place"
    return ""


def _cannot_join(group: Group) -> str:
    """Why DoRA on the parts of a fused module is not DoRA on the whole; "" where it is."""
    kinds = {delta.tuner for delta in group.present}
    if len(group.deltas) == 1 or not kinds & _NORMED:
        return ""
    if INPUT_NORM in kinds:
        return "each part has its own norms over outputs, the fused module would have one"
    if len(kinds) > 1 or None in group.deltas:
        return "some parts of a fused module have DoRA, and others none"
    return ""


def _names(deltas: Sequence[Delta]) -> tuple[str, ...]:
    refs = (ref for delta in deltas for ref in delta.roles.values())
    return tuple(dict.fromkeys(leaf.name for ref in refs for leaf in leaves(ref)))


def pair_in(group: Group) -> Pair:
    """The stored module's factors; MismatchError where the parts' sizes do not make it up."""
    parts = [None if delta is None else pair_of(delta) for delta in group.deltas]
    seat = group.seat
    if seat is None:
        return next(part for part in parts if part is not None)
    present = [part for part in parts if part is not None]
    shares = zip(parts, seat.rule.shares, strict=True)
    units = {divmod(part.out, share) for part, share in shares if part is not None}
    if len(units) > 1 or any(rest for _, rest in units) or len({p.a.shape[1] for p in present}) > 1:
        outs = [part and part.out for part in parts]
        message = f"outputs {outs} do not make the fused {seat.original}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=group.present[0].module)
    ((unit, _),) = units
    return fused(parts, seat.rows(unit * sum(seat.rule.shares), present[0].a.shape[1]))


def pair_of(delta: Delta) -> Pair:
    """One delta's factors."""
    magnitude = delta.roles.get("magnitude")
    if magnitude is not None:
        magnitude = reshaped(magnitude, (magnitude.elements,))
    return Pair(delta.roles["A"], delta.roles["B"], delta.terms.scaling, magnitude)


def stored_dtype(ref: TensorRef, wanted: Dtype | None = None) -> Dtype:
    """`wanted`, or its own; float32 for what was computed in float64 from something narrower."""
    if wanted is not None:
        return wanted
    computed = ref.dtype == F64 and any(leaf.dtype != F64 for leaf in leaves(ref))
    return F32 if computed else ref.dtype


# What speaks of the factors as they were: configs, sizes, hashes.
_STALE = frozenset({*METADATA_KEYS, *HASHES, "ss_network_dim", "ss_network_alpha", "format"})


def brought(adapter: Adapter) -> dict[str, str]:
    """Of the metadata that an adapter came with, what holds for any file of it."""
    return {name: text for name, text in adapter.metadata.items() if name not in _STALE}
