"""Which dtype a factor is written in, where a layout's reader knows only some."""

from __future__ import annotations

from collections.abc import Sequence

from adaptool.model.adapter import Delta
from adaptool.model.derived import F32, F64, leaves
from adaptool.model.encoding import Written
from adaptool.store.tensors import TensorRef

_TAKEN = frozenset({"F32", "F16", "BF16"})


def as_written(name: str, ref: TensorRef, deltas: Sequence[Delta]) -> Written:
    """The tensor in its own dtype where runtimes take it, else in float32.

    What was scaled is float64 here and float32 there. A dtype that an operation chose for made
    factors is kept.
    """
    chosen = {delta.dtype for delta in deltas}
    if len(chosen) == 1:
        (dtype,) = chosen
        if dtype is not None and dtype.name in _TAKEN and not _is_scaled(ref, deltas):
            return Written(name, ref, dtype)
    return Written(name, ref, ref.dtype if ref.dtype.name in _TAKEN else F32)


def _is_scaled(ref: TensorRef, deltas: Sequence[Delta]) -> bool:
    """Whether float64 came in on the way: from a ratio, not from the factors."""
    stored = {
        leaf.dtype for delta in deltas for each in delta.roles.values() for leaf in leaves(each)
    }
    made = {each.dtype for delta in deltas for each in delta.roles.values()}
    return ref.dtype == F64 and F64 not in stored | made
