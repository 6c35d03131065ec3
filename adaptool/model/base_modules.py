"""The parameters and modules of a base, in the names that an adapter has for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.names.families import model_types
from adaptool.names.renames import CheckpointNames, Placement, module_names
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
    kinds = model_types(base.config)
    checkpoint = CheckpointNames(base.shapes, kinds)
    return {
        name: shape
        for tensor, shape in base.shapes.items()
        for name in _names(tensor, kinds, checkpoint, wanted)
    }


def _names(
    tensor: str, kinds: tuple[str, ...], checkpoint: CheckpointNames, wanted: frozenset[str]
) -> tuple[str, ...]:
    """The adapter's names where it has any, else the module's where the tensor is all of it."""
    if tensor in wanted:
        return (tensor,)
    candidates = module_names(kinds, tensor)
    own = tuple(name for name in candidates if name in wanted)
    if own:
        return own
    whole = (Placement(tensor),)
    return (next((name for name in candidates if checkpoint.placements(name) == whole), tensor),)
