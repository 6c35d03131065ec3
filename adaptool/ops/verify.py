"""What verify needs beside a merge's plan: the options of the receipt, and the structure check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from adaptool.errors import InputError, UsageError
from adaptool.findings import Code
from adaptool.model.options import MergeOptions
from adaptool.model.plan import Plan
from adaptool.model.results import Difference
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef

_NAMES = tuple(option.name for option in fields(MergeOptions))
# Options that receipts of earlier releases do not have.
_LATER = ("alpha", "scale")


def options_of(receipt: Mapping[str, Any], file: str) -> tuple[list[float], MergeOptions]:
    """Weights and options that a merge recorded; InputError where they are not readable."""
    recorded = receipt.get("options")
    if receipt.get("command") != "merge" or not isinstance(recorded, Mapping):
        message = f"records {receipt.get('command')!r}, not a merge"
        raise InputError(message, code=Code.RECEIPT_INVALID, file=file)
    try:
        weights = [float(weight) for weight in recorded["weights"]]
        options = MergeOptions().given(**_complete(recorded))
    except (KeyError, TypeError, ValueError, UsageError) as error:
        message = f"options cannot be read: {error!r}"
        raise InputError(message, code=Code.RECEIPT_INVALID, file=file) from None
    return weights, options


def _complete(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Every option; those that merges had no need to record before are as if not given."""
    every = {**dict.fromkeys(_LATER, ()), **recorded}
    return {name: every[name] for name in _NAMES}


def structure(plan: Plan, merged: Checkpoint) -> tuple[dict[str, TensorRef], list[Difference]]:
    """The merged tensors that can be compared, and those that differ in kind."""
    comparable: dict[str, TensorRef] = {}
    different: list[Difference] = []
    for row in plan.rows:
        ref = merged.tensors.get(row.name)
        if ref is None:
            different.append(Difference(row.name, None, 1.0, "missing from the merged model"))
        elif ref.shape != row.shape:
            reason = f"shape {list(ref.shape)}, expected {list(row.shape)}"
            different.append(Difference(row.name, None, 1.0, reason))
        elif ref.dtype != row.dtype:
            reason = f"dtype {ref.dtype.name}, expected {row.dtype.name}"
            different.append(Difference(row.name, None, 1.0, reason))
        else:
            comparable[row.name] = ref
    names = {row.name for row in plan.rows}
    different += [
        Difference(name, None, 1.0, "not expected in the merged model")
        for name in merged.tensors
        if name not in names
    ]
    return comparable, different
