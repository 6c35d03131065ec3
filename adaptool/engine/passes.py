"""Single passes over stored tensors in bounded memory: sums that need every element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from adaptool.dtypes import DTYPES
from adaptool.engine.arithmetic import torch_dtype
from adaptool.model.values import Comparison
from adaptool.model.view import View
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 1024 * 1024


def compare_tensors(
    one: TensorRef, other: TensorRef, device: torch.device | str = "cpu"
) -> Comparison:
    """Two tensors of one shape in float64, a million elements at a time, summed up on `device`.

    Where both hold the same bytes in the same dtype there is no difference, NaN or not.
    """
    import torch

    inner = first = second = difference = 0.0
    for start in range(0, one.elements, BLOCK_ELEMENTS):
        stop = min(one.elements, start + BLOCK_ELEMENTS)
        left, right = elements(one, start, stop), elements(other, start, stop)
        same = one.dtype == other.dtype and torch.equal(
            left.view(torch.uint8), right.view(torch.uint8)
        )
        left = left.to(device).to(torch.float64)
        mine = float(torch.dot(left, left))
        first += mine
        if same:
            inner, second = inner + mine, second + mine
            continue
        right = right.to(device).to(torch.float64)
        apart = left - right
        difference += float(torch.dot(apart, apart))
        inner += float(torch.dot(left, right))
        second += float(torch.dot(right, right))
    return Comparison(inner, first, second, difference)


def squares(ref: TensorRef, view: View | None = None) -> float:
    """The sum of squares in float64, of all elements or of those that `view` names."""
    import torch

    if view is None:
        blocks = (
            elements(ref, start, min(ref.elements, start + BLOCK_ELEMENTS)).to(torch.float64)
            for start in range(0, ref.elements, BLOCK_ELEMENTS)
        )
        return sum(float(torch.dot(block, block)) for block in blocks)
    whole = view.columns.is_whole(prod(ref.shape[view.fold :]))
    columns = None if whole else torch.tensor(list(view.columns.indices()), dtype=torch.long)
    found = 0.0
    for block in _rows_in(ref, view):
        chosen = (block if columns is None else block[:, columns]).reshape(-1)
        found += float(torch.dot(chosen, chosen))
    return found


def _rows_in(ref: TensorRef, view: View) -> Iterator[torch.Tensor]:
    """The rows that a view names, in float64, a block of neighbouring rows at a time."""
    import torch

    columns = prod(ref.shape[view.fold :])
    height = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(view.rows.start, view.rows.stop, height):
        stop = min(view.rows.stop, start + height)
        pieces = list(view.rows.pieces(start, stop))
        if not pieces:
            continue
        block = elements(ref, start * columns, stop * columns).reshape(-1, columns)
        for rows, _ in pieces:
            yield block[rows].to(torch.float64)


def elements(ref: TensorRef, start: int, stop: int) -> torch.Tensor:
    """Elements [start, stop) in the tensor's own dtype, flat.

    Element types that torch lacks are given as their bytes, complex numbers as pairs.
    """
    import torch

    if ref.dtype.name == "C64":
        return elements(replace(ref, dtype=DTYPES["F32"]), 2 * start, 2 * stop)
    plain = ref.dtype.torch is not None and ref.dtype.bits % 8 == 0
    low, high = start * ref.dtype.bits // 8, -(-stop * ref.dtype.bits // 8)
    raw = torch.empty(high - low, dtype=torch.uint8)
    if len(raw):
        ref.source.read_into(ref.offset + low, raw.numpy().data)
    return raw.view(torch_dtype(ref.dtype)) if plain else raw
