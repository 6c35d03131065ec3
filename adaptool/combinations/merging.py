"""The door of this room: one module's deltas in, its merged delta as factors out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from adaptool.combinations import core_space, delta_space, methods
from adaptool.combinations.factor_space import finished, stacked
from adaptool.combinations.method import (
    AnyMethod,
    Combined,
    CoreMethod,
    DeltaMethod,
    Factored,
    FactorMethod,
    Options,
    Space,
)
from adaptool.errors import InputError, MismatchError, UsageError
from adaptool.findings import Code


def combined(method: str, parts: Sequence[Factored], options: Options, name: str) -> Combined:
    """The deltas of module `name` merged by `method`, in float64.

    Parts of weight 0 are not there; without any other the result is zeros. One active adapter at
    weight w gives w D for every method, as long as the density is 1. UsageError for an option
    that the method cannot use, MismatchError where the parts do not fit each other, InputError
    for values that are not finite; `name` stands in the error as its tensor.
    """
    chosen = methods()[method]
    check_options(method, options)
    active = [part for part in parts if part.weight != 0]
    _check_parts(parts, name)
    if not active:
        return _nothing(parts[0].shape, options.rank)
    if len(active) == 1 and (options.density == 1 or not chosen.METHOD.takes_density):
        product = stacked(active)
        return finished(product, product, options.rank)
    return _merged(chosen, active, options, name)


def check_options(method: str, options: Options) -> None:
    """UsageError where `options` do not suit the method: a rank or density it cannot use."""
    declared = methods()[method].METHOD
    if options.rank is None and declared.needs_rank:
        message = f"the method {method} needs a rank"
        raise UsageError(
            message,
            code=Code.USAGE,
            field="--rank",
            hint="give --rank N; --method cat needs none",
        )
    if options.rank is not None and options.rank < 1:
        message = f"a rank of {options.rank} is below 1"
        raise UsageError(message, code=Code.USAGE, field="--rank")
    if not 0 < options.density <= 1:
        message = f"a density of {options.density} is not in (0, 1]"
        raise UsageError(
            message,
            code=Code.USAGE,
            field="--density",
            hint="1 keeps every element",
        )


def _merged(method: AnyMethod, active: Sequence[Factored], options: Options, name: str) -> Combined:
    space = method.METHOD.space
    if space is Space.CORE:
        return core_space.merged(active, cast("CoreMethod", method), options)
    if space is Space.DELTA:
        deltas = delta_space.ProductDeltas.of(name, active)
        rank = options.rank or min(deltas.shape)
        return delta_space.merged(deltas, cast("DeltaMethod", method), options, rank)
    wanted = stacked(active)
    if space is Space.EXACT:
        return finished(wanted, wanted, options.rank)
    product = cast("FactorMethod", method).merge(active, options)
    return finished(product, wanted, options.rank)


def _nothing(shape: tuple[int, int], rank: int | None) -> Combined:
    import torch

    count = rank or 1
    left = torch.zeros((shape[0], count), dtype=torch.float64)
    right = torch.zeros((count, shape[1]), dtype=torch.float64)
    return Combined(left, right, 0.0, exact=True)


def _check_parts(parts: Sequence[Factored], name: str) -> None:
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        message = f"the adapters change this module by deltas of shapes {shapes}"
        raise MismatchError(
            message,
            code=Code.SHAPE_MISMATCH,
            tensor=name,
            hint="adapters of different base models cannot be combined",
        )
    for part in parts:
        if not (part.left.isfinite().all() and part.right.isfinite().all()):
            message = f"adapter {part.place + 1} has values that are not finite"
            raise InputError(
                message,
                code=Code.NOT_FINITE,
                tensor=name,
            )
        if not math.isfinite(part.weight):
            message = f"the weight {part.weight} is not finite"
            raise UsageError(message, code=Code.USAGE, field="--weights")
