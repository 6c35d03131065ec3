"""PEFT's stacked experts as one pair of factors an expert and projection.

PEFT trains all experts' matrices as one parameter (`target_parameters`): A (E r, in),
expert-major, B (out, r E), rank-major, or expert-major where Unsloth trained it. `gate_up_proj`
holds the rows of both projections, gate first. For bases that store (experts, out, in).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from adaptool.layouts.plain_deltas import lora_delta, slice_of
from adaptool.model.adapter import Adapter, Delta, Form
from adaptool.model.derived import permuted, reshaped
from adaptool.names.families import SWAPPED_EXPERTS
from adaptool.store.tensors import TensorRef

_GATE_UP = "gate_up_proj"
_BOTH = ("gate_proj", "up_proj")


def apart(adapter: Adapter, types: Iterable[str] = ()) -> Adapter:
    """The adapter with every stack taken apart that can be; `types`: the base's family."""
    swapped = bool(SWAPPED_EXPERTS.intersection(types))
    deltas = tuple(
        each for delta in adapter.deltas for each in _experts(_in_out(delta) if swapped else delta)
    )
    return replace(adapter, deltas=deltas)


def _in_out(delta: Delta) -> Delta:
    """A stack that PEFT took for (experts, out, in), though it is (experts, in, out)."""
    if delta.terms.form is not Form.EXPERTS or "axes" in delta.terms.conventions:
        return delta
    conventions = {**delta.terms.conventions, "axes": "in-out"}
    return replace(delta, terms=replace(delta.terms, conventions=conventions))


def _experts(delta: Delta) -> Iterator[Delta]:
    """One delta an expert and projection; the delta itself where it is no such stack."""
    if not _is_known(delta):
        yield delta
        return
    terms = delta.terms
    parent, _, leaf = delta.parameter.rpartition(".")
    names = _BOTH if leaf == _GATE_UP else (leaf,)
    inputs, outputs = _stacks(delta, len(names))
    for expert in range(terms.experts):
        for place, name in enumerate(names):
            b = slice_of(slice_of(outputs, place), expert)
            roles = {"A": slice_of(inputs, expert), "B": b}
            made = lora_delta(f"{parent}.{expert}.{name}", roles, terms.scaling, terms.alpha)
            yield replace(made, dtype=delta.dtype)


def _is_known(delta: Delta) -> bool:
    conventions = dict(delta.terms.conventions)
    return (
        delta.terms.form is Form.EXPERTS
        and delta.roles.keys() == {"A", "B"}
        and delta.parameter.endswith((f".experts.{_GATE_UP}", ".experts.down_proj"))
        and conventions.pop("packing", "unsloth") == "unsloth"
        and conventions.pop("axes", "in-out") == "in-out"
        and not conventions
        and not _rows(delta) % 2
    )


def _rows(delta: Delta) -> int:
    """The output rows of one expert's parameter."""
    swapped = delta.terms.conventions.get("axes") == "in-out"
    return delta.terms.inner if swapped else delta.terms.out


def _stacks(delta: Delta, parts: int) -> tuple[TensorRef, TensorRef]:
    """A as (E, r, in) and B as (parts, E, out / parts, r), each made in one move.

    Early releases took a stack for (experts, in, out): there B is the inputs' side.
    """
    terms, rank = delta.terms, delta.terms.rank or 1
    experts = terms.experts
    a = reshaped(delta.roles["A"], (experts, rank, terms.inner))
    if terms.conventions.get("packing") == "unsloth":
        b = permuted(reshaped(delta.roles["B"], (terms.out, experts, rank)), (0, 2, 1))
    else:
        b = reshaped(delta.roles["B"], (terms.out, rank, experts))
    if terms.conventions.get("axes") == "in-out":
        split = reshaped(a, (experts, rank, parts, terms.inner // parts))
        return permuted(b, (2, 1, 0)), permuted(split, (2, 0, 3, 1))
    split = reshaped(b, (parts, terms.out // parts, rank, experts))
    return a, permuted(split, (0, 3, 1, 2))
