"""Sizes of a delta that stand in none of its tensors: the base's shape decides.

IA3 knows only one side of the weight that it scales, VeRA only the outputs. Where a known side
fits both axes, or none is known, the orientation is the base's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form
from adaptool.names.renames import Part, Placement
from adaptool.names.resolver import Fused, Resolution
from adaptool.ops.targets import Base, orders, part_of_axis, prefers_transposed, sized, slot_of

Size = tuple[int, int]


def completed(
    delta: Delta, resolution: Resolution, base: Base, fan_in_fan_out: bool | None
) -> Delta:
    """The delta with both its sizes, and a convolution's kernel; MismatchError where none fits."""
    terms = delta.terms
    if terms.sized:
        return delta
    prefer = prefers_transposed(delta, base, fan_in_fan_out)
    for order in orders(delta, prefer):
        for rows, columns in _matrices(delta, resolution, base, order):
            out, inner = (columns, rows) if order else (rows, columns)
            if terms.out in (0, out) and terms.inner in (0, inner):
                kernel = _kernel(delta, resolution, base)
                return replace(delta, terms=replace(terms, out=out, inner=inner, kernel=kernel))
    name = resolution.placements[0].tensor
    known = " and ".join(
        f"{size} {side}" for size, side in ((terms.out, "outputs"), (terms.inner, "inputs")) if size
    )
    message = f"the adapter is for {known or 'a matrix'}, {name} is {list(base.shapes[name])}"
    hint = "was the adapter trained on another model, or another size of it?"
    raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module, hint=hint)


def _kernel(delta: Delta, resolution: Resolution, base: Base) -> tuple[int, ...]:
    """The trailing axes of a convolution; of one whose form no tensor tells, where it has two."""
    shape = base.shapes[resolution.placements[0].tensor]
    untold = delta.terms.form is Form.LINEAR and len(shape) > 3
    if delta.terms.form is not Form.CONVOLUTION and not untold:
        return delta.terms.kernel
    return shape[2:]


def _matrices(delta: Delta, resolution: Resolution, base: Base, order: bool) -> Iterator[Size]:
    """Rows and columns that the whole parameter may have, as the base lays it out."""
    if resolution.fused is not None:
        yield from _of_member(delta, resolution, base, order)
    elif resolution.members:
        yield from _of_members(resolution, base, order)
    else:
        placement = sized(resolution.placements, base)[0]
        if not placement.unsupported:
            yield from _of_piece(placement, base)


def _matrix(base: Base, name: str) -> Size:
    shape = base.shapes[name]
    return shape[0], prod(shape[1:])


def _of_member(delta: Delta, resolution: Resolution, base: Base, order: bool) -> Iterator[Size]:
    """One of several projections in a fused tensor; k and v may be smaller than q."""
    part, across = resolution.fused, 1 if order else 0
    size = list(_matrix(base, resolution.placements[0].tensor))
    if delta.terms.out:
        size[across] = delta.terms.out
    elif part is not None and (part.order is Fused.PER_HEAD or part.count == 2):
        size[across] //= part.count
    else:
        size[across] = _share(delta, size[across], base, first=part is None or not part.index)
    yield size[0], size[1]


def _share(delta: Delta, total: int, base: Base, *, first: bool) -> int:
    """The outputs of q, or of k or v, among `total` fused ones, by their heads."""
    heads = base.heads + 2 * base.shared_heads
    if not base.heads or not base.shared_heads or total % heads:
        message = "how many of the fused outputs are this module's stands in no tensor of it"
        raise MismatchError(message, code=Code.SHAPE_AMBIGUOUS, tensor=delta.module)
    return total // heads * (base.heads if first else base.shared_heads)


def _of_members(resolution: Resolution, base: Base, order: bool) -> Iterator[Size]:
    """A fused projection whose members the base stores one by one."""
    found = [_matrix(base, placement.tensor) for placement in resolution.placements]
    across = 1 if order else 0
    total = sum(size[across] for size in found)
    others = {size[1 - across] for size in found}
    if len(others) == 1:
        yield (others.pop(), total) if order else (total, others.pop())


def _of_piece(placement: Placement, base: Base) -> Iterator[Size]:
    """From what one tensor holds of the parameter to all of it."""
    _, of_tensor, shape = slot_of(placement.of_tensor, base.shapes[placement.tensor])
    matrix = (shape[0], prod(shape[1:]))
    spans = [part_of_axis(of_tensor, axis, matrix[axis]) for axis in (0, 1)]
    counts = [found.count for found in spans if found is not None]
    if len(counts) != 2:
        return
    turns = (False, True) if placement.transposed_by_shape else (placement.transposed,)
    for turned in turns:
        held = counts[::-1] if turned else counts
        yield (
            _unfolded(placement.of_parameter, 0, held[0]),
            _unfolded(placement.of_parameter, 1, held[1]),
        )


def _unfolded(parts: Sequence[Part], axis: int, count: int) -> int:
    """The size of an axis of which the parts leave `count` elements."""
    for part in reversed(parts):
        if part.axis == axis and not part.dropped:
            count = sum(part.sizes) if part.sizes else count * part.count // part.width
    return count
