"""Deltas of one weight that PEFT targets by the parameter's name and by its module's.

PEFT cannot load both of one layer, so their sum is targeted by the module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta
from adaptool.model.algebra import Weighted
from adaptool.names.families import CONV1D

BY_NAME = "parameter"


def targeted_alike(
    group: Sequence[Weighted], model_types: Sequence[str] | None
) -> Sequence[Weighted]:
    """The deltas of one parameter, all targeted by the module where not all are by its name.

    A parameter's delta has its rows and columns as they are stored, a module's has (out, in).
    `model_types` are the base's, None where it is not known: MismatchError where the two
    orientations differ, or may differ.
    """
    named = [part for part in group if _by_name(part.delta)]
    if not named or len(named) == len(group):
        return group
    terms = named[0].delta.terms
    if model_types is None and terms.out == terms.inner:
        raise _refusal(named[0].delta, "its orientation is not known without the base")
    if model_types and model_types[0] in CONV1D:
        raise _refusal(named[0].delta, "the base stores it as (in, out)", hint=None)
    return [replace(part, delta=_by_module(part.delta)) for part in group]


def _by_name(delta: Delta) -> bool:
    return bool(delta.terms.conventions.get(BY_NAME))


def _by_module(delta: Delta) -> Delta:
    if not _by_name(delta):
        return delta
    kept = {name: value for name, value in delta.terms.conventions.items() if name != BY_NAME}
    module = delta.parameter.removesuffix(".weight")
    return replace(delta, module=module, terms=replace(delta.terms, conventions=kept))


def _refusal(delta: Delta, why: str, hint: str | None = "--base BASE") -> MismatchError:
    message = f"one adapter targets the parameter by name, another its module, and {why}"
    return MismatchError(message, code=Code.UNSUPPORTED, tensor=delta.parameter, hint=hint)
