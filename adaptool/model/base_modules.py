"""The parameters and modules of a base, in the names that an adapter has for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.names.families import model_types
from adaptool.names.model_names import ModelNames
from adaptool.names.renames import CheckpointNames, Placement
from adaptool.names.selection import with_containers

if TYPE_CHECKING:
    from adaptool.model.reading import BaseNames


@dataclass(frozen=True, slots=True)
class BaseModules:
    """What is known of the modules of the model that an adapter is for.

    `modules` are those that hold numbers, and what holds these. `complete`: there are no others,
    and `parameters` are theirs, each with the shape of the tensor it lies in. Else the model may
    have others, and `parameters` are not known.
    """

    parameters: Mapping[str, tuple[int, ...]]
    modules: frozenset[str]
    complete: bool


def modules_of(parameters: Collection[str], base: BaseNames | None) -> BaseModules:
    """The base's modules, where it has all of `parameters` of the adapter; else the adapter's own.

    A checkpoint may store a parameter under another name: it is given the adapter's.
    """
    wanted = frozenset(parameters)
    own = {name.rpartition(".")[0] for name in wanted}
    found = {} if base is None else _parameters(base, wanted)
    bases = {name.rpartition(".")[0] for name in found}
    if own and own <= with_containers(bases):
        return BaseModules(found, frozenset(with_containers(bases | own)), complete=True)
    return BaseModules({}, frozenset(with_containers(bases | own)), complete=False)


def _parameters(base: BaseNames, wanted: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, under the adapter's name where it is another one."""
    model = ModelNames(base.shapes, base.config)
    checkpoint = CheckpointNames(base.shapes, model_types(base.config))
    found = {name: _tensors(pieces) for name, pieces in model.parameters.items()}
    others = {
        name: tensors
        for name in wanted - found.keys()
        if (tensors := _tensors(checkpoint.placements(name)))
    }
    renamed = {tensor for tensors in others.values() for tensor in tensors}
    kept = {
        name: tensors
        for name, tensors in found.items()
        if name in wanted or not renamed.issuperset(tensors)
    }
    return {
        name: base.shapes.get(tensors[0], ())
        for name, tensors in (kept | others).items()
        if tensors
    }


def _tensors(pieces: Iterable[Placement]) -> tuple[str, ...]:
    return tuple(piece.tensor for piece in pieces)
