"""Findings that need tensor values: NaN and infinities, adapters and weights of zeros."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Delta
from adaptool.model.values import Scan, ValueReader
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef


def scans(tensors: Mapping[str, TensorRef], values: ValueReader) -> dict[str, Scan]:
    """Every tensor looked at once, by name."""
    return dict(zip(tensors, values.several(values.scan, list(tensors.values())), strict=True))


def nonfinite_findings(tensors: Mapping[str, TensorRef], seen: Mapping[str, Scan]) -> list[Finding]:
    """One error for each tensor with NaN or infinities: how many, and where the first is."""
    return [
        Finding(
            Code.NOT_FINITE,
            Severity.ERROR,
            f"{scan.nonfinite} of {tensors[name].elements} values are NaN or infinite, "
            f"the first at {scan.first}",
            file=tensors[name].file,
            tensor=name,
            hint="training diverged, or the file is damaged",
        )
        for name, scan in seen.items()
        if scan.nonfinite
    ]


def untrained_findings(deltas: Sequence[Delta], seen: Mapping[str, Scan]) -> list[Finding]:
    """A warning where every delta is zero, a note where some are."""
    zero = [delta for delta in deltas if _is_zero(delta, seen)]
    if not zero:
        return []
    every = len(zero) == len(deltas)
    first = next(ref for ref in zero[0].roles.values() if seen[ref.name].all_zero)
    untrained = ": the adapter is untrained" if every else ""
    return [
        Finding(
            Code.ALL_ZERO,
            Severity.WARNING if every else Severity.NOTE,
            f"{len(zero)} of {len(deltas)} modules have a factor of zeros{untrained}",
            file=first.file,
            tensor=first.name,
            hint="PEFT starts lora_B at zero; was this saved before training?" if every else None,
        )
    ]


def _is_zero(delta: Delta, seen: Mapping[str, Scan]) -> bool:
    return any(seen[ref.name].all_zero for ref in delta.roles.values())


def checkpoint_findings(checkpoint: Checkpoint, values: ValueReader | None) -> list[Finding]:
    """What a checkpoint's values say: NaN, matrices of zeros; nothing where they are not read."""
    if values is None:
        return []
    seen = scans(checkpoint.tensors, values)
    zeros = _zero_weights_findings(checkpoint.tensors.values(), seen)
    return [*nonfinite_findings(checkpoint.tensors, seen), *zeros]


def _zero_weights_findings(tensors: Iterable[TensorRef], seen: Mapping[str, Scan]) -> list[Finding]:
    """A warning where matrices are zero throughout, as after a write that was cut by power loss.

    Vectors are left out: biases of zeros are common.
    """
    matrices = [ref for ref in tensors if ref.dtype.floating and len(ref.shape) > 1]
    zero = [ref for ref in matrices if seen[ref.name].all_zero]
    if not zero:
        return []
    message = f"{len(zero)} of {len(matrices)} matrices hold nothing but zeros"
    hint = "is the file damaged, or the model untrained?"
    return [
        Finding(
            Code.ALL_ZERO,
            Severity.WARNING,
            message,
            file=zero[0].file,
            tensor=zero[0].name,
            hint=hint,
        )
    ]
