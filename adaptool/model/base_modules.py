"""The parameters and modules of a base, in the names that an adapter has for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adaptool.names.families import model_types
from adaptool.names.renames import CheckpointNames, Placement, module_names
from adaptool.names.selection import missing_layers, with_containers

if TYPE_CHECKING:
    from adaptool.model.reading import BaseNames


@dataclass(frozen=True, slots=True)
class BaseModules:
    """What is known of the modules of the model that an adapter is for.

    `modules` are those that hold numbers, and what holds these. `complete`: there are no others,
    and `parameters` are theirs, each with the shape of the tensor it lies in. Else `parameters` are
    not known, and `likely` are modules that must be reckoned with.
    """

    parameters: Mapping[str, tuple[int, ...]]
    modules: frozenset[str]
    complete: bool
    likely: frozenset[str] = field(default=frozenset())

    @property
    def reckoned(self) -> frozenset[str]:
        """The modules that are there or may be."""
        return self.modules | self.likely


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
    modules = bases | own
    likely = missing_layers(modules)
    return BaseModules(
        {}, frozenset(with_containers(modules)), complete=False, likely=frozenset(likely)
    )


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
