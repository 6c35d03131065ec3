"""Tensors that an adapter brings whole, where the base holds them fused or in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Replaced, Terms
from adaptool.model.derived import reshaped, taken, transposed
from adaptool.model.view import View
from adaptool.names.resolver import Resolution
from adaptool.ops.targets import Base, views
from adaptool.store.tensors import TensorRef

VALUE = "value"


def parts_of(
    item: Replaced, found: Resolution, base: Base
) -> Iterator[tuple[str, View, TensorRef]]:
    """(tensor of the base, where in it, what takes that place) for all of the item.

    The value is (rows, columns) of the view, in its order. MismatchError where sizes do not agree,
    and for token rows and stacked experts.
    """
    if item.rows is not None or len(item.value.shape) > 2:
        message = "the base stores this tensor fused or in pieces; replacing a part of it"
        message += " is not supported for token rows and stacked experts"
        raise MismatchError(message, code=Code.UNSUPPORTED, tensor=item.value.name)
    for name, view in views_of(item, found, base):
        yield name, view, _laid_out(item.value, view)


def views_of(item: Replaced, found: Resolution, base: Base) -> list[tuple[str, View]]:
    """(tensor of the base, where in it) for all of the item, which is no set of token rows."""
    return views(_as_delta(item), found, base, fan_in_fan_out=None)


def _as_delta(item: Replaced) -> Delta:
    """A delta of the value's size, for which views are known; its axes are the parameter's own."""
    shape = item.value.shape
    # A kernel never lies transposed in the base: neither does a value, which is no product.
    form = Form.VECTOR if len(shape) == 1 else Form.CONVOLUTION
    terms = Terms(form, out=shape[0], inner=prod(shape[1:]), scaling=1.0)
    return Delta(item.value.name, item.parameter, item.tuner, {VALUE: item.value}, terms)


def _laid_out(value: TensorRef, view: View) -> TensorRef:
    """What of the value stands in the view, as the base lays it out."""
    matrix = reshaped(value, (value.shape[0], prod(value.shape[1:])))
    matrix = transposed(matrix) if view.transposed else matrix
    for axis, span in enumerate((view.take_rows, view.take_columns)):
        matrix = matrix if span is None else taken(matrix, span, axis)
    return matrix
