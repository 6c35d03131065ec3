"""Where a delta lies in the base: from resolved names and shapes to views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form
from adaptool.model.view import Span, View, whole
from adaptool.names.families import CONV1D, TRANSPOSED_EXPERTS
from adaptool.names.renames import Part, Placement
from adaptool.names.resolver import Fused, FusedPart, Resolution

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Base:
    """What views need of a base: shapes by name, its family, its attention heads (0: unknown).

    `shared_heads` are those of k and v, each of which several of q's may use.
    """

    shapes: Mapping[str, Shape]
    model_types: tuple[str, ...]
    heads: int = 0
    shared_heads: int = 0


def plausible(delta: Delta, shape: Shape) -> bool:
    """Whether a tensor of this shape could take the whole delta; for the suffix rule."""
    terms = delta.terms
    if terms.form is Form.VECTOR:
        return len(shape) == 1 and terms.out in (0, shape[0])
    if terms.form is Form.EXPERTS:
        return (
            len(shape) == 3
            and shape[0] == terms.experts
            and (sorted(shape[1:]) == sorted((terms.out, terms.inner)))
        )
    if len(shape) < 2:
        return False
    rows, columns = shape[0], prod(shape[1:])
    return any(
        terms.out in (0, out) and terms.inner in (0, inner)
        for out, inner in ((rows, columns), (columns, rows))
    )


def views(
    delta: Delta, resolution: Resolution, base: Base, fan_in_fan_out: bool | None
) -> list[tuple[str, View]]:
    """(tensor name, view) pairs that together take the whole delta; MismatchError where not."""
    prefer = prefers_transposed(delta, base, fan_in_fan_out)
    if resolution.fused is not None:
        name = resolution.placements[0].tensor
        return [(name, _member_view(delta, name, resolution.fused, base, prefer))]
    if resolution.members:
        names = [placement.tensor for placement in resolution.placements]
        return list(_fused_views(delta, names, base, prefer))
    return [
        (placement.tensor, view)
        for placement in sized(resolution.placements, base)
        for view in _placed(delta, placement, base, prefer)
    ]


def prefers_transposed(delta: Delta, base: Base, fan_in_fan_out: bool | None) -> bool:
    """What shapes cannot tell: whether a square weight is stored (in, out)."""
    if delta.terms.form is Form.EMBEDDING:
        return True
    if delta.terms.form is Form.EXPERTS:
        return _prefers_transposed_experts(delta, base)
    if delta.terms.form is Form.CONVOLUTION or delta.terms.conventions.get("parameter"):
        return False
    if base.model_types:
        head = delta.parameter.endswith("lm_head.weight")
        return base.model_types[0] in CONV1D and not head
    return bool(fan_in_fan_out)


def _prefers_transposed_experts(delta: Delta, base: Base) -> bool:
    """Stacked deltas are (out, in); releases of PEFT before 0.19.1 read the axes otherwise."""
    stored = any(kind in TRANSPOSED_EXPERTS for kind in base.model_types)
    axes = delta.terms.conventions.get("axes")
    if axes == "in-out":
        return True
    return stored != (axes == "inverted")


def orders(delta: Delta, prefer: bool) -> tuple[bool, ...]:
    """Whether the delta may lie transposed in the base, the likelier answer first."""
    if delta.terms.form is Form.EMBEDDING:
        return (True,)
    if delta.terms.form in (Form.CONVOLUTION, Form.VECTOR):
        return (False,)
    return (prefer, not prefer)


def _placed(delta: Delta, placement: Placement, base: Base, prefer: bool) -> Iterator[View]:
    if placement.unsupported:
        message = f"the base stores it through {placement.unsupported}, which moves its elements"
        raise MismatchError(
            message, code=Code.UNSUPPORTED, tensor=delta.parameter, hint=f"see {placement.tensor}"
        )
    shape = base.shapes[placement.tensor]
    stacked = delta.terms.form is Form.EXPERTS
    expert, of_parameter = _expert_of(placement.of_parameter)
    if stacked and expert is None:
        yield from _stack_views(delta, placement, shape, prefer)
        return
    slot, of_tensor, inner = slot_of(placement.of_tensor, shape)
    if not stacked:
        expert = None
        if _is_single_expert(delta, shape) and slot is None:
            slot, inner = 0, shape[1:]
    for order in orders(delta, prefer):
        view = _fit(delta, placement, order, of_parameter, of_tensor, shape=inner)
        if view is not None:
            yield _moved(view, slot, inner, expert)
            return
    _refuse_shape(delta, placement.tensor, shape)


def sized(placements: Sequence[Placement], base: Base) -> Sequence[Placement]:
    """Chunks of a concatenation are as long as their tensors: say so where they are not equal."""
    lengths: dict[tuple[int, int], dict[int, int]] = {}
    for placement in placements:
        dropped = sum(part.dropped for part in placement.of_parameter)
        for part in placement.of_parameter:
            axis = part.axis - dropped
            if part.dropped or part.interleaved or not 0 <= axis < 2:
                continue
            shape = base.shapes[placement.tensor]
            axis = len(shape) - 1 - axis if placement.transposed else axis
            lengths.setdefault((part.axis, part.count), {})[part.index] = shape[axis]
    unequal = {
        key: tuple(found[index] for index in sorted(found))
        for key, found in lengths.items()
        if len(found) == key[1] and len(set(found.values())) > 1
    }
    return [
        replace(
            placement,
            of_parameter=tuple(
                replace(part, sizes=unequal.get((part.axis, part.count)))
                for part in placement.of_parameter
            ),
        )
        for placement in placements
    ]


def _is_single_expert(delta: Delta, shape: Shape) -> bool:
    """A parameter targeted by name that is a stack of one: PEFT writes its delta as a matrix."""
    return delta.terms.form is Form.LINEAR and len(shape) == 3 and shape[0] == 1


def _expert_of(parts: Sequence[Part]) -> tuple[int | None, tuple[Part, ...]]:
    """Take the expert's part off a stacked parameter's; the other axes move up by one."""
    expert = next((part.index for part in parts if part.dropped), None)
    if expert is None:
        return None, tuple(parts)
    rest = tuple(
        replace(part, axis=part.axis - 1) for part in parts if not part.dropped and part.axis > 0
    )
    return expert, rest


def slot_of(parts: Sequence[Part], shape: Shape) -> tuple[int | None, tuple[Part, ...], Shape]:
    """Take the expert's part off a stacked tensor's; returns the shape of one expert."""
    if len(shape) == 3 and any(part.dropped for part in parts):
        slot, rest = _expert_of(parts)
        return slot, rest, shape[1:]
    return None, tuple(parts), shape


def _stack_views(delta: Delta, placement: Placement, shape: Shape, prefer: bool) -> Iterator[View]:
    """One view per expert, where delta and tensor are both stacked."""
    if len(shape) != 3 or shape[0] != delta.terms.experts:
        _refuse_shape(delta, placement.tensor, shape)
    for order in orders(delta, prefer):
        view = _fit(
            delta, placement, order, placement.of_parameter, placement.of_tensor, shape=shape[1:]
        )
        if view is not None:
            for expert in range(shape[0]):
                yield _moved(view, expert, shape[1:], expert)
            return
    _refuse_shape(delta, placement.tensor, shape)


def _fit(
    delta: Delta,
    placement: Placement,
    order: bool,
    of_parameter: Sequence[Part],
    of_tensor: Sequence[Part],
    *,
    shape: Shape,
) -> View | None:
    """The view under one orientation of the delta, None where sizes do not agree."""
    if placement.transposed_by_shape:
        plain = replace(placement, transposed_by_shape=False)
        return _fit(delta, plain, order, of_parameter, of_tensor, shape=shape) or _fit(
            delta, replace(plain, transposed=True), order, of_parameter, of_tensor, shape=shape
        )
    terms = delta.terms
    size = (terms.inner, terms.out) if order else (terms.out, terms.inner)
    matrix = (shape[0], prod(shape[1:]))
    taken = [part_of_axis(of_parameter, axis, size[axis]) for axis in (0, 1)]
    placed = [part_of_axis(of_tensor, axis, matrix[axis]) for axis in (0, 1)]
    if None in taken or None in placed:
        return None
    if placement.transposed:
        taken.reverse()
        size = (size[1], size[0])
    rows, columns = placed
    take_rows, take_columns = taken
    if rows is None or columns is None or take_rows is None or take_columns is None:
        return None
    if (rows.count, columns.count) != (take_rows.count, take_columns.count):
        return None
    return View(
        rows=rows,
        columns=columns,
        transposed=order != placement.transposed,
        take_rows=None if take_rows.is_whole(size[0]) else take_rows,
        take_columns=None if take_columns.is_whole(size[1]) else take_columns,
    )


def part_of_axis(parts: Sequence[Part], axis: int, size: int) -> Span | None:
    """The indices that the parts leave of an axis of `size`; None where they do not divide it."""
    span = whole(size)
    for part in parts:
        if part.axis != axis:
            continue
        if span.step != 1 or span.blocks != 1:
            return None
        if part.sizes is not None:
            if sum(part.sizes) != span.length:
                return None
            start = span.start + sum(part.sizes[: part.index])
            span = Span(start, part.sizes[part.index])
        elif not part.count or span.length % part.count:
            return None
        elif part.interleaved:
            span = Span(span.start + part.index, span.length // part.count, step=part.count)
        else:
            length = span.length // part.count
            span = Span(span.start + part.index * length, length * part.width)
    return span


def _moved(view: View, slot: int | None, inner: Shape, expert: int | None) -> View:
    """The view inside expert `slot` of a stacked tensor, taking expert `expert` of the delta."""
    rows, fold = view.rows, 1
    if slot is not None:
        rows = Span(rows.start + slot * inner[0], rows.length, rows.step, rows.blocks, rows.stride)
        fold = 2
    return View(
        rows=rows,
        columns=view.columns,
        fold=fold,
        transposed=view.transposed,
        take_rows=view.take_rows,
        take_columns=view.take_columns,
        expert=expert,
    )


def _member_view(delta: Delta, name: str, part: FusedPart, base: Base, prefer: bool) -> View:
    """A separate q, k, v, gate or up delta inside the fused tensor of the base."""
    shape, out = base.shapes[name], delta.terms.out
    if delta.terms.form is Form.VECTOR:
        return View(rows=_member_span(shape[0], out, part, base, name), columns=whole(1))
    for order in orders(delta, prefer):
        matrix = (shape[1], shape[0]) if order else (shape[0], prod(shape[1:]))
        if matrix[1] != delta.terms.inner:
            continue
        member = _member_span(matrix[0], out, part, base, name)
        across = whole(delta.terms.inner)
        if order:
            return View(rows=across, columns=member, transposed=True)
        return View(rows=member, columns=across)
    _refuse_shape(delta, name, shape)
    raise AssertionError


def _member_span(total: int, out: int, part: FusedPart, base: Base, name: str) -> Span:
    """Where member `part.index` with `out` outputs lies among `total` fused outputs.

    Concatenated q, k, v: k and v are as large as each other, so one size gives all three.
    """
    if part.order is Fused.PER_HEAD:
        heads = base.heads
        if not heads or out % heads or total != part.count * out:
            message = (
                f"{out} outputs cannot be told apart in {total} fused ones without head counts"
            )
            raise MismatchError(message, code=Code.SHAPE_AMBIGUOUS, tensor=name)
        size = out // heads
        return Span(part.index * size, size, blocks=heads, stride=part.count * size)
    if part.count == 2:
        sizes: tuple[int, ...] = (total // 2, total // 2)
    elif part.index == 0:
        sizes = (out, (total - out) // 2, (total - out) // 2)
    else:
        sizes = (total - 2 * out, out, out)
    if sum(sizes) != total or min(sizes) < 1 or sizes[part.index] != out:
        message = f"a delta with {out} outputs does not fit the fused {total}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=name)
    return Span(sum(sizes[: part.index]), out)


def _fused_views(
    delta: Delta, names: Sequence[str], base: Base, prefer: bool
) -> Iterator[tuple[str, View]]:
    """A fused delta cut onto the base's separate tensors."""
    for order in orders(delta, prefer):
        axis = 1 if order else 0
        sizes = [base.shapes[name][axis] for name in names]
        matching = all(
            prod(base.shapes[name]) == size * delta.terms.inner
            for name, size in zip(names, sizes, strict=True)
        )
        if sum(sizes) != delta.terms.out or not matching:
            continue
        start = 0
        for name, size in zip(names, sizes, strict=True):
            part, inner = Span(start, size), whole(delta.terms.inner)
            start += size
            yield (
                name,
                View(
                    rows=inner if order else whole(size),
                    columns=whole(size) if order else inner,
                    transposed=order,
                    take_rows=None if order else part,
                    take_columns=part if order else None,
                ),
            )
        return
    _refuse_shape(delta, names[0], base.shapes[names[0]])


def _refuse_shape(delta: Delta, name: str, shape: Shape) -> None:
    terms = delta.terms
    found = f"{terms.experts} x " if terms.experts else ""
    if terms.kernel and len(shape) > 2 and shape[0] == terms.out:
        groups, rest = divmod(terms.inner // prod(terms.kernel), max(1, shape[1]))
        if groups > 1 and not rest:
            message = (
                f"the delta reads all {shape[1] * groups} channels, the base's kernel {list(shape)}"
                f" only one of {groups} groups"
            )
            hint = "PEFT's delta crosses the groups, so no grouped kernel can hold it"
            raise MismatchError(message, code=Code.UNSUPPORTED, tensor=delta.module, hint=hint)
    message = f"the delta is {found}{terms.out} x {terms.inner}, {name} is {list(shape)}"
    hint = "was the adapter trained on another model, or another size of it?"
    raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module, hint=hint)
