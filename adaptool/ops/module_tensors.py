"""A checkpoint as the library's model has it once it is loaded: tensors by module parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptool.model.adjoined import adjoined, rows_of
from adaptool.names.model_names import ModelNames
from adaptool.names.renames import Placement
from adaptool.ops.base_norms import opened_drafts
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef

_STACK = 3


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """The model's parameters.

    `stored` are those that stand under their checkpoint's name, because the library makes them in
    a way that is no plain run of bytes. `flipped` are stacks whose last two axes the library swaps.
    """

    names: ModelNames
    tensors: Mapping[str, TensorRef]
    stored: frozenset[str]
    flipped: frozenset[str] = frozenset()


def module_tensors(checkpoint: Checkpoint) -> ModuleTensors:
    """Every tensor under its module's name, packed ones as the plain ones they stand for.

    Experts that the checkpoint keeps one by one are one tensor where the module has one.
    """
    plain = {name: draft.source for name, draft in opened_drafts(checkpoint).items()}
    names = ModelNames(plain, checkpoint.config)
    found: dict[str, TensorRef] = {}
    taken: set[str] = set()
    for parameter, pieces in names.parameters.items():
        ref = _assembled(parameter, pieces, plain)
        if ref is not None:
            found[parameter] = ref
            taken.update(piece.tensor for piece in pieces)
    flipped: set[str] = set()
    for parameter, pieces in names.parameters.items():
        order = _order(parameter, pieces, plain, checkpoint.config)
        if parameter not in found and order is not None:
            found[parameter] = plain[pieces[0].tensor]
            taken.add(pieces[0].tensor)
            flipped |= {parameter} if order else set()
    left = {name: ref for name, ref in plain.items() if name not in taken}
    return ModuleTensors(names, {**found, **left}, frozenset(left), frozenset(flipped))


def _order(
    parameter: str,
    pieces: tuple[Placement, ...],
    plain: Mapping[str, TensorRef],
    config: Mapping[str, Any] | None,
) -> bool | None:
    """Whether a stack of experts lies (experts, in, out), by the model's sizes; None: none such."""
    if len(pieces) != 1 or not pieces[0].transposed_by_shape or pieces[0].of_parameter:
        return None
    shape = plain[pieces[0].tensor].shape if pieces[0].tensor in plain else ()
    hidden = _text(config).get("hidden_size")
    if len(shape) != _STACK or hidden not in shape[1:]:
        return None
    inner = 1 if parameter.endswith("gate_up_proj") else 2
    return bool(shape[1] != shape[2] and shape[inner] == hidden)


def _text(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    inner = (config or {}).get("text_config")
    return inner if isinstance(inner, Mapping) else config or {}


def _assembled(
    parameter: str, pieces: tuple[Placement, ...], plain: Mapping[str, TensorRef]
) -> TensorRef | None:
    """The parameter of one tensor, of a run of its rows, or of experts one after the other."""
    if any(piece.tensor not in plain or piece.unsupported for piece in pieces) or not pieces:
        return None
    first = pieces[0]
    if pieces == (Placement(first.tensor),):
        return plain[first.tensor]
    if len(pieces) == 1 and not first.transposed and not first.transposed_by_shape:
        return _run(first, plain[first.tensor])
    return _stack(parameter, pieces, plain)


def _run(piece: Placement, ref: TensorRef) -> TensorRef | None:
    """A run of the tensor's rows."""
    if piece.of_parameter or len(piece.of_tensor) != 1:
        return None
    (part,) = piece.of_tensor
    plain = part.axis == 0 and not part.interleaved and not part.dropped and part.width == 1
    if not plain or part.sizes is not None or not part.count or ref.shape[0] % part.count:
        return None
    return rows_of(ref, part.index, part.count)


def _stack(
    parameter: str, pieces: tuple[Placement, ...], plain: Mapping[str, TensorRef]
) -> TensorRef | None:
    """Experts on a new first axis, their projections one after the other on the second."""
    places: dict[tuple[int, int], TensorRef] = {}
    for piece in pieces:
        expert, *runs = piece.of_parameter or (None,)
        if expert is None or not expert.dropped or expert.axis or piece.of_tensor or len(runs) > 1:
            return None
        if piece.transposed or piece.transposed_by_shape:
            return None
        if runs and (runs[0].axis != 1 or runs[0].interleaved):
            return None
        places[expert.index, runs[0].index if runs else 0] = plain[piece.tensor]
    refs = [places[place] for place in sorted(places)]
    experts = len({expert for expert, _ in places})
    alike = len({(ref.dtype, ref.shape) for ref in refs}) == 1
    if len(refs[0].shape) != 2 or not alike or len(refs) % experts:
        return None
    rows, columns = refs[0].shape
    return adjoined(parameter, refs, (experts, len(refs) // experts * rows, columns))
