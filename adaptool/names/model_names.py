"""The names that a model's modules have in the current library, and what an adapter means by one.

A checkpoint's tensor names lead to them through transformers' renames for the class that the
config names; an adapter may spell them as any release did, or as the checkpoint does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adaptool.names.families import model_types
from adaptool.names.module_kinds import Kind, is_headless, kind_of
from adaptool.names.rename_rules import base_prefixes, known, readings
from adaptool.names.renames import CheckpointNames, Part, Placement
from adaptool.names.resolver import Resolver

Fits = Callable[[str], bool]
# What schemes of packed weights call the tensor that stands for `weight`.
_PACKED = (".qweight", ".weight_packed", ".weight.quant_state.bitsandbytes__nf4")


@dataclass(frozen=True, slots=True)
class Home:
    """The parameter that a name stands for, and which piece of it.

    `expert`: one matrix of a stack. `chunk`: of `chunks` equal runs of its output rows.
    """

    parameter: str
    expert: int | None = None
    chunk: int = 0
    chunks: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether the name stands for all of the parameter."""
        return self.expert is None and self.chunks == 1


class ModelNames:
    """The parameters of one base, by the names that the current library's modules have."""

    def __init__(self, names: Iterable[str], config: Mapping[str, Any] | None) -> None:
        """`names` are the checkpoint's tensors; `config` tells family and class."""
        self.types = model_types(config)
        self._classes = _architectures(config)
        self._names = tuple(dict.fromkeys(_plain(name) for name in names))

    @property
    def is_known(self) -> bool:
        """Whether transformers' renames for this family are known."""
        return any(known(kind) for kind in self.types)

    @cached_property
    def parameters(self) -> Mapping[str, tuple[Placement, ...]]:
        """Every parameter with its pieces in the checkpoint; () where one of them is missing."""
        found = CheckpointNames(self._names, self.types, self._classes).parameters()
        prefix = self.base_prefix
        if not prefix or not self._classes:
            return found
        inside = [name for name in found if name.startswith(f"{prefix}.")]
        if is_headless(self._classes) and len(inside) == len(found):
            return {name.removeprefix(f"{prefix}."): pieces for name, pieces in found.items()}
        if not is_headless(self._classes) and not inside:
            return {f"{prefix}.{name}": pieces for name, pieces in found.items()}
        return found

    @property
    def base_prefix(self) -> str:
        """Where a model with a head keeps the one without; "" where several names are known."""
        found = base_prefixes(self.types[:1]) if self.is_known else ()
        return found[0] if len(found) == 1 else ""

    def kind(self, parameter: str, axes: int) -> Kind:
        """What kind of module holds the parameter."""
        return kind_of(self.types, parameter, axes)

    def home(self, name: str, fits: Fits = lambda _: False) -> Home | None:
        """What an adapter's name for a parameter stands for; None where the base has it not.

        `fits`: as `Resolver.resolve` needs it.
        """
        if name in self.parameters:
            return Home(name)
        found = self._resolver.resolve(name, fits)
        if found is None or found.fused is not None or found.members:
            return None
        tensors = [placement.tensor for placement in found.placements]
        owners = self._owners.get(tensors[0], ())
        if len(owners) != 1:
            return None
        parameter, piece = owners[0]
        if found.placements == (Placement(tensors[0]),):
            return _home(parameter, piece.of_parameter)
        (piece, *others) = self.parameters[parameter]
        whole = not others and not piece.of_parameter and not piece.of_tensor
        if len(tensors) == 1 and whole and not found.placements[0].of_parameter:
            return _home(parameter, found.placements[0].of_tensor)
        same = sorted(tensors) == sorted(each.tensor for each in self.parameters[parameter])
        return Home(parameter) if same else None

    def module_name(self, tensor: str) -> str:
        """The parameter that a tensor of this name would be, stored or not."""
        return readings(self.types, self._classes)[0].reach(tensor).parameters[0]

    def bare(self, parameter: str) -> str:
        """The name in the model without its head."""
        prefix = self.base_prefix
        return parameter.removeprefix(f"{prefix}.") if prefix else parameter

    @cached_property
    def _resolver(self) -> Resolver:
        return Resolver(self._names, self.types)

    @cached_property
    def _owners(self) -> Mapping[str, list[tuple[str, Placement]]]:
        """By tensor: the parameters that it is, or holds a piece of."""
        found: dict[str, list[tuple[str, Placement]]] = {}
        for parameter, pieces in self.parameters.items():
            for piece in pieces:
                found.setdefault(piece.tensor, []).append((parameter, piece))
        return found


def _home(parameter: str, parts: tuple[Part, ...]) -> Home | None:
    """The home of a piece; None for a piece of another kind than an expert's output rows."""
    expert = next((part.index for part in parts if part.axis == 0 and part.dropped), None)
    rest = [part for part in parts if not part.dropped]
    if not rest:
        return Home(parameter, expert)
    run = rest[0]
    plain = len(rest) == 1 and run.axis > 0 and run.sizes is None
    if expert is None or not plain or run.width != 1:
        return None
    return Home(parameter, expert, run.index, run.count)


def _architectures(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    found = (config or {}).get("architectures")
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()


def _plain(name: str) -> str:
    """The name of the weight that a packed tensor stands for."""
    for ending in _PACKED:
        if name.endswith(ending):
            return name.removesuffix(ending) + ".weight"
    return name
