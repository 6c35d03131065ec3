"""From a parameter's name in an adapter to the checkpoint's tensors that hold it.

In this order: the exact name; known prefixes; transformers' own renames; stacked and per-expert
parameters; separate and fused projections; a unique suffix whose shape fits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from adaptool.names.diffusion_checkpoints import DiffusionNames
from adaptool.names.families import INTERLEAVED_EXPERTS, SWAPPED_EXPERTS, TRANSPOSED_EXPERTS
from adaptool.names.fusions import (
    PER_HEAD,
    PER_HEAD_NAMES,
    STACKED,
    UNSLICEABLE,
    Fusion,
    fused_names,
    member_names,
)
from adaptool.names.renames import CheckpointNames, Part, Placement

# Wrappers' and base models' prefixes that one library writes and another leaves out.
PREFIXES = (
    "model.",
    "base_model.",
    "transformer.",
    "language_model.",
    "model.language_model.",
    "language_model.model.",
    "module.",
    "_orig_mod.",
    "model.model.",
    "model.diffusion_model.",
)
# Models of a diffusion pipeline, as an adapter for several of them names them.
COMPONENTS = frozenset(
    {"unet", "transformer", "transformer_2", "prior", "text_encoder", "text_encoder_2"}
    | {"text_encoder_3"}
)
# Where a multimodal model keeps its text model, whose own tensors begin with `model.`.
TEXT_MODELS = ("model.language_model.", "model.text_model.")
SIBLINGS = ("in_proj_weight",)
_EXPERT = re.compile(r"(.*\.)?experts\.(\d+)\.([^.]+)\.weight")

Fits = Callable[[str], bool]


class How(StrEnum):
    """Which rule found the tensors."""

    EXACT = "exact"
    PREFIX = "prefix"
    RENAME = "rename"
    STACK = "stack"
    FUSION = "fusion"
    SUFFIX = "suffix"


class Fused(StrEnum):
    """How a member lies in a fused tensor."""

    CONCATENATED = "concatenated"
    PER_HEAD = "per-head"


@dataclass(frozen=True, slots=True)
class FusedPart:
    """The parameter is member `index` of `count` in a fused tensor; sizes follow from shapes."""

    index: int
    count: int
    order: Fused


@dataclass(frozen=True, slots=True)
class Resolution:
    """The tensors that hold a parameter.

    `fused`: the one tensor named holds it as a member. `members`: the parameter is fused, and the
    tensors named hold its members in order.
    """

    how: How
    placements: tuple[Placement, ...]
    fused: FusedPart | None = None
    members: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether one tensor is the parameter, all of it as it is."""
        first = self.placements[0]
        moved = first.of_parameter or first.of_tensor or first.transposed or first.unsupported
        return len(self.placements) == 1 and not (moved or self.fused or self.members)


class Resolver:
    """Looks parameters up among one checkpoint's tensor names."""

    def __init__(self, names: Iterable[str], model_types: Sequence[str]) -> None:
        """`model_types`: the config's, outermost first, those of its sub-configs after it."""
        self._names = frozenset(names)
        self._types = tuple(model_types)
        self._index = CheckpointNames(self._names, self._types)
        self._diffusion = DiffusionNames(self._names)
        self._by_tail: dict[str, list[str]] | None = None

    def resolve(self, parameter: str, fits: Fits) -> Resolution | None:
        """The tensors of `parameter`, None where there are none.

        `fits` says whether a tensor's shape could take the parameter: the last rule needs it.
        """
        # An encoder's prefix is no part of a name that older releases wrote otherwise.
        first = self._plain if parameter.startswith("text_encoder") else self._by_rules
        return (
            self._published(parameter)
            or first(parameter)
            or self._in_component(parameter, fits)
            or self._by_suffix(parameter, fits)
        )

    def _by_rules(self, parameter: str) -> Resolution | None:
        for rule in (self._plain, self._renamed, self._stacked, self._fused):
            found = rule(parameter)
            if found is not None:
                return found
        return None

    def _in_component(self, parameter: str, fits: Fits) -> Resolution | None:
        """The base is one component of the pipeline that the adapter is for.

        Encoders of a pipeline have the same names: shapes tell which of them the base is.
        """
        component, _, rest = parameter.partition(".")
        if component not in COMPONENTS:
            return None
        found = self._published(rest) or self._by_rules(rest)
        if found is None or (found.is_whole and not fits(found.placements[0].tensor)):
            return None
        return found

    def nearest(self, parameter: str) -> tuple[str, ...]:
        """Up to three names that look most like `parameter`."""
        tail = parameter.rsplit(".", 2)[-2:]
        pool = [name for name in self._names if name.rsplit(".", 2)[-2:] == tail]
        pool = sorted(pool or self._names)[:5000]
        return tuple(difflib.get_close_matches(parameter, pool, n=3, cutoff=0.4))

    def _published(self, parameter: str) -> Resolution | None:
        """First, because a published checkpoint may have another module under the same name."""
        placements = self._diffusion.placements(parameter)
        return Resolution(How.RENAME, placements) if placements else None

    def _plain(self, parameter: str) -> Resolution | None:
        for name in (parameter, *self._siblings(parameter)):
            if name in self._names:
                return Resolution(How.EXACT, (Placement(name),))
        found = self._unique(_prefixed(parameter))
        return Resolution(How.PREFIX, (Placement(found),)) if found else None

    def _siblings(self, parameter: str) -> Iterator[str]:
        """nn.MultiheadAttention keeps q, k and v in a parameter of its own."""
        if parameter.endswith(".weight"):
            for sibling in SIBLINGS:
                yield parameter.removesuffix("weight") + sibling

    def _unique(self, candidates: Iterable[str]) -> str | None:
        found = {name for name in candidates if name in self._names}
        return found.pop() if len(found) == 1 else None

    def _renamed(self, parameter: str) -> Resolution | None:
        for name in (parameter, parameter.removesuffix(".weight")):
            placements = self._index.placements(name)
            if placements:
                return Resolution(How.RENAME, placements)
        return None

    def _stacked(self, parameter: str) -> Resolution | None:
        for candidate in (parameter, *_prefixed(parameter)):
            placements = (
                self._stack_onto_experts(candidate)
                or self._expert_in_stack(candidate)
                or self._expert_of_module(candidate)
            )
            if placements:
                return Resolution(How.STACK, placements)
        return None

    def _stack_onto_experts(self, parameter: str) -> tuple[Placement, ...]:
        """`a.experts.gate_up_proj` onto `a.experts.E.gate_proj.weight` and up_proj's."""
        parent, _, name = parameter.removesuffix(".weight").rpartition(".")
        if not parent.endswith("experts"):
            return ()
        for fusion in STACKED:
            first = f"{parent}.0.{fusion.members[0]}.weight"
            if name in fusion.fused and first in self._names:
                return self._experts(parent, fusion.members)
        return ()

    def _experts(self, parent: str, members: tuple[str, ...]) -> tuple[Placement, ...]:
        count = 0
        while f"{parent}.{count}.{members[0]}.weight" in self._names:
            count += 1
        placements = []
        for expert in range(count):
            for place, member in enumerate(members):
                name = f"{parent}.{expert}.{member}.weight"
                if name not in self._names:
                    return ()
                parts = [Part(0, expert, count, dropped=True)]
                if len(members) > 1:
                    parts.append(Part(1, place, len(members)))
                placements.append(Placement(name, of_parameter=tuple(parts)))
        return tuple(placements)

    def _expert_in_stack(self, parameter: str) -> tuple[Placement, ...]:
        """`a.experts.3.gate_proj.weight` in the stacked `a.experts.gate_up_proj`."""
        match = _EXPERT.fullmatch(parameter)
        if not match:
            return ()
        parent, expert, member = match[1] or "", int(match[2]), match[3]
        for fusion in STACKED:
            if member not in fusion.members:
                continue
            for fused in fusion.fused:
                name = f"{parent}experts.{fused}"
                if name in self._names:
                    parts = self._parts_of_expert(expert, fusion.members.index(member), fusion)
                    return (Placement(name, of_tensor=parts),)
        return ()

    def _parts_of_expert(self, expert: int, place: int, fusion: Fusion) -> tuple[Part, ...]:
        """Where one projection of an expert lies in a stack of the family."""
        whole = Part(0, expert, 0, dropped=True)
        count = len(fusion.members)
        if count == 1:
            return (whole,)
        types = frozenset(self._types)
        axis = 2 if types & (TRANSPOSED_EXPERTS | SWAPPED_EXPERTS) else 1
        return whole, Part(axis, place, count, interleaved=bool(types & INTERLEAVED_EXPERTS))

    def _expert_of_module(self, parameter: str) -> tuple[Placement, ...]:
        """An expert of the module's stack, which the checkpoint keeps under other names."""
        match = _EXPERT.fullmatch(parameter)
        if not match:
            return ()
        parent, expert, member = match[1] or "", int(match[2]), match[3]
        for fusion in STACKED:
            for fused in fusion.fused if member in fusion.members else ():
                pieces = self._index.placements(f"{parent}experts.{fused}")
                place = fusion.members.index(member)
                if found := self._piece_of_stack(pieces, expert, place, fusion):
                    return (found,)
        return ()

    def _piece_of_stack(
        self, pieces: Sequence[Placement], expert: int, place: int, fusion: Fusion
    ) -> Placement | None:
        """One projection of an expert: a tensor of its own, or a piece of the stack's."""
        if len(pieces) == 1 and not pieces[0].of_parameter and not pieces[0].of_tensor:
            return replace(pieces[0], of_tensor=self._parts_of_expert(expert, place, fusion))
        for piece in pieces:
            where = [part.index for part in piece.of_parameter]
            if where == [expert, place][: len(fusion.members)] and not piece.of_tensor:
                return replace(piece, of_parameter=())
        return None

    def _fused(self, parameter: str) -> Resolution | None:
        module, _, leaf = parameter.rpartition(".")
        for candidate in (module, *_prefixed(module)):
            found = self._member_of_fused(candidate, leaf) or self._fused_of_members(
                candidate, leaf
            )
            if found is not None:
                return found
        return None

    def _member_of_fused(self, module: str, leaf: str) -> Resolution | None:
        for fused, fusion, index in fused_names(module):
            name = f"{fused}.{leaf}"
            if name not in self._names or any(kind in UNSLICEABLE for kind in self._types):
                continue
            per_head = fused.rpartition(".")[2] in PER_HEAD_NAMES and any(
                kind in PER_HEAD for kind in self._types
            )
            order = Fused.PER_HEAD if per_head else Fused.CONCATENATED
            part = FusedPart(index, len(fusion.members), order)
            return Resolution(How.FUSION, (Placement(name),), fused=part)
        return None

    def _fused_of_members(self, module: str, leaf: str) -> Resolution | None:
        for members in member_names(module):
            names = [f"{member}.{leaf}" for member in members]
            if all(name in self._names for name in names):
                placements = tuple(Placement(name) for name in names)
                return Resolution(How.FUSION, placements, members=True)
        return None

    def _by_suffix(self, parameter: str, fits: Fits) -> Resolution | None:
        if self._by_tail is None:
            self._by_tail = {}
            for name in self._names:
                self._by_tail.setdefault(_tail(name), []).append(name)
        pool = self._by_tail.get(_tail(parameter), ())
        suffix = parameter.partition(".")[2]
        while suffix.count(".") >= 1:
            found = [name for name in pool if f".{name}".endswith(f".{suffix}") and fits(name)]
            if found:
                placement = (Placement(found[0]),)
                return Resolution(How.SUFFIX, placement) if len(found) == 1 else None
            suffix = suffix.partition(".")[2]
        return None


def _tail(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def _prefixed(parameter: str) -> Iterator[str]:
    for prefix in PREFIXES:
        if parameter.startswith(prefix):
            yield parameter.removeprefix(prefix)
        yield prefix + parameter
    for prefix in TEXT_MODELS:
        if parameter.startswith(prefix):
            yield "model." + parameter.removeprefix(prefix)
        elif parameter.startswith("model."):
            yield prefix + parameter.removeprefix("model.")
