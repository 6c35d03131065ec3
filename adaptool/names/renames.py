"""Where a module's parameter lies in a checkpoint, and the other way round.

Adapter keys carry the module names of the transformers version that trained them; a checkpoint on
disk carries others: renamed, one tensor for each expert where the module has one stack, fused
where the module has three. `CheckpointNames` answers for one checkpoint, from names alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from adaptool.names.rename_rules import Form, Reached, Reading, Rule, base_prefixes, known, readings

_Members: TypeAlias = dict[tuple[int, int | None], list[str]]


@dataclass(frozen=True, slots=True)
class Part:
    """Chunk `index` of `count` equal chunks of an axis, and `width - 1` more that follow it.

    `interleaved`: every count-th element from `index` instead of a run. `dropped`: the chunk is
    one element and the axis is gone (one expert of a stack); `count` is then the axis size, 0
    where names do not tell it. `sizes`: the chunk sizes where they are known to be unequal.
    """

    axis: int
    index: int
    count: int
    interleaved: bool = False
    dropped: bool = False
    sizes: tuple[int, ...] | None = None
    width: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where (a piece of) a module's parameter lies in a checkpoint.

    `of_parameter` is the piece of the parameter that the tensor holds, on the parameter's axes;
    `of_tensor` the piece of the tensor that the parameter is, on the tensor's axes. Chunks of a
    concatenation are as long as the tensors that hold them: where shapes say that they are not
    equal, their running sum is the truth.
    `transposed`: the last two axes are swapped between the two; `transposed_by_shape`: they are
    where the shapes differ. `unsupported` names an operation that is no index map.
    """

    tensor: str
    of_parameter: tuple[Part, ...] = ()
    of_tensor: tuple[Part, ...] = ()
    transposed: bool = False
    transposed_by_shape: bool = False
    unsupported: str | None = None


class CheckpointNames:
    """The tensor names of one checkpoint, to be asked for module parameters.

    `model_types`: config.model_type and those of the sub-configs, outermost first. Unknown ones
    bring no renames. Building is O(1); the first question reads every name once.
    """

    def __init__(
        self, names: Iterable[str], model_types: Sequence[str] = (), classes: Sequence[str] = ()
    ) -> None:
        """Remember the names; the order does not matter. `classes`: config.architectures."""
        self.names = frozenset(names)
        self.model_types = tuple(model_types)
        self._readings = readings(self.model_types, classes)
        self._prefixes = base_prefixes(self.model_types)
        self._typed = any(known(kind) for kind in self.model_types)

    @cached_property
    def _indices(self) -> tuple[_Index, ...]:
        return tuple(_index(reading, self.names) for reading in self._readings)

    def parameters(self) -> dict[str, tuple[Placement, ...]]:
        """Every parameter that the model has once it is loaded, with its pieces.

        () where the checkpoint does not hold all of it. Of several recipes the first one's.
        """
        index = self._indices[0]
        return {parameter: index.placements(parameter) for parameter in index.entries}

    def placements(self, parameter: str) -> tuple[Placement, ...]:
        """Every piece of a module parameter, such as `model.layers.0.mlp.experts.down_proj`.

        `parameter` may as well be a checkpoint-style name that this checkpoint stores in another
        form. () where the checkpoint does not hold all of it.
        """
        for candidate in self._spellings(parameter):
            if found := self._known(candidate):
                return found
        for index in self._indices:
            reached = index.reading.reach(parameter)
            if found := self._from_disk_style(parameter, reached, index):
                return found
        return ()

    def _spellings(self, parameter: str) -> Iterator[str]:
        """The parameter, then the ones with a base prefix taken away or added, if just one fits."""
        yield parameter
        without = [
            parameter[len(prefix) + 1 :]
            for prefix in self._prefixes
            if parameter.startswith(f"{prefix}.")
        ]
        head, _, rest = parameter.partition(".")
        if not self._typed and head and "." in rest:
            without.append(rest)
        added = [f"{prefix}.{parameter}" for prefix in self._prefixes]
        for group in (without, added):
            fits = [name for name in dict.fromkeys(group) if self._known(name)]
            if len(fits) == 1:
                yield fits[0]

    def _known(self, parameter: str) -> tuple[Placement, ...]:
        for index in self._indices:
            if found := index.placements(parameter):
                return found
        return (Placement(parameter),) if parameter in self.names else ()

    def _from_disk_style(self, name: str, reached: Reached, index: _Index) -> tuple[Placement, ...]:
        """Placements of a parameter that has a checkpoint-style name and becomes `reached`."""
        if reached.rule is None or reached.rule.form is None:
            (target,) = reached.parameters
            return () if target == name else self._first_of(target)
        entry = index.entries.get(reached.parameters[0])
        same = entry.members.get((reached.source, reached.star), []) if entry else []
        if len(same) == 1 and entry is not None and entry.rule is reached.rule:
            return (Placement(same[0]),)
        whole = [self._whole(parameter) for parameter in reached.parameters]
        held = [placement for placement in whole if placement is not None]
        return _inverted(reached, held) if len(held) == len(whole) else ()

    def _first_of(self, parameter: str) -> tuple[Placement, ...]:
        for candidate in self._spellings(parameter):
            if found := self._known(candidate):
                return found
        return ()

    def _whole(self, parameter: str) -> str | None:
        """The tensor that is all of the parameter and nothing else."""
        found = self._first_of(parameter)
        return (
            found[0].tensor if len(found) == 1 and found == (Placement(found[0].tensor),) else None
        )


def checkpoint_placements(
    model_types: Sequence[str], parameter: str, names: Iterable[str]
) -> tuple[Placement, ...]:
    """`CheckpointNames(names, model_types).placements(parameter)`, for a single question."""
    return CheckpointNames(names, model_types).placements(parameter)


def module_names(model_types: Sequence[str], tensor: str) -> tuple[str, ...]:
    """The module parameters that a checkpoint tensor may be (a piece of), most likely first."""
    if not any(known(kind) for kind in model_types):
        return (tensor,)
    reached = [
        name for reading in readings(model_types) for name in reading.reach(tensor).parameters
    ]
    bare = [
        name[len(prefix) + 1 :]
        for name in reached
        for prefix in base_prefixes(model_types)
        if name.startswith(f"{prefix}.")
    ]
    return tuple(dict.fromkeys((*reached, *bare, tensor)))


# --- the index of a checkpoint under one reading ----------------------------------------------


@dataclass(slots=True)
class _Entry:
    """What becomes one module parameter: tensors by (source, star) of a converter."""

    rule: Rule | None
    target: int
    members: _Members = field(default_factory=dict)
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class _Index:
    reading: Reading
    entries: Mapping[str, _Entry]

    def placements(self, parameter: str) -> tuple[Placement, ...]:
        entry = self.entries.get(parameter)
        if entry is None or entry.mixed:
            return ()
        if any(len(tensors) != 1 for tensors in entry.members.values()):
            return ()
        tensors = {place: tensors[0] for place, tensors in entry.members.items()}
        if entry.rule is None or entry.rule.form is None:
            return (Placement(tensors[0, None]),)
        return _assembled(entry.rule, entry.rule.form, entry.target, tensors)


def _index(reading: Reading, names: frozenset[str]) -> _Index:
    entries: dict[str, _Entry] = {}
    for name, reached in reading.reach_all(names):
        for target, parameter in enumerate(reached.parameters):
            entry = entries.setdefault(parameter, _Entry(reached.rule, target))
            entry.mixed |= entry.rule is not reached.rule or entry.target != target
            entry.members.setdefault((reached.source, reached.star), []).append(name)
    return _Index(reading, entries)


# --- pieces -----------------------------------------------------------------------------------


def _assembled(
    rule: Rule, form: Form, target: int, tensors: Mapping[tuple[int, int | None], str]
) -> tuple[Placement, ...]:
    """The placements of target number `target`; () where a source or an expert is missing."""
    if refused := (form.refused or {}).get(str(target)):
        return tuple(Placement(name, unsupported=refused) for name in tensors.values())
    numbered = any(star is not None for _, star in tensors)
    count = len(tensors) // rule.sources if numbered else 1
    places = [
        (source, star)
        for source in range(rule.sources)
        for star in (range(count) if numbered else (None,))
    ]
    if len(places) != len(tensors) or any(place not in tensors for place in places):
        return ()
    dealt = _dealt(form, target, len(rule.targets), count)
    return tuple(
        placement
        for source, star in places
        if star is None or star in dealt
        for placement in _pieces(
            tensors[source, star],
            form,
            _stacked(form, source, rule.sources, star, dealt),
            _cut(form, target, len(rule.targets)),
        )
    )


def _dealt(form: Form, target: int, targets: int, count: int) -> range:
    if not form.shared:
        return range(count)
    share = -(-count // targets)
    return range(target * share, min(count, (target + 1) * share))


def _stacked(
    form: Form, source: int, sources: int, star: int | None, dealt: range
) -> tuple[Part, ...]:
    """The piece of the parameter that tensor `star` of a source is."""
    parts = []
    if form.stack is not None and star is not None:
        parts.append(Part(form.stack, star - dealt.start, len(dealt), dropped=True))
    if form.join is not None and sources > 1:
        parts.append(Part(form.join, source, sources))
    elif form.join is not None and star is not None:
        parts.append(Part(form.join, star, len(dealt)))
    return tuple(parts)


def _cut(form: Form, target: int, targets: int) -> tuple[Part, ...]:
    if form.split is None:
        return ()
    return (Part(form.split, target, targets, interleaved=form.interleaved),)


def _pieces(
    tensor: str, form: Form, of_parameter: tuple[Part, ...], of_tensor: tuple[Part, ...]
) -> tuple[Placement, ...]:
    if form.unweave is None:
        by_shape = form.transposed == "by-shape"
        swapped = form.transposed == "yes"
        return (Placement(tensor, of_parameter, of_tensor, swapped, by_shape),)
    return tuple(
        Placement(
            tensor,
            (*of_parameter, Part(form.unweave, half, 2)),
            (*of_tensor, Part(form.unweave, half, 2, interleaved=True)),
        )
        for half in (0, 1)
    )


def _inverted(reached: Reached, held: Sequence[str]) -> tuple[Placement, ...]:
    """Placements of a checkpoint-style parameter in the module-style tensors `held`."""
    rule = reached.rule
    if rule is None or rule.form is None:
        return ()
    form, targets = rule.form, len(rule.targets)
    if form.shared or form.refused:
        name = next(iter(form.refused.values())) if form.refused else "shared experts"
        return tuple(Placement(tensor, unsupported=name) for tensor in held)
    stars = range(0) if form.stack is not None else range(1)
    parts = _stacked(form, reached.source, rule.sources, reached.star, stars)
    return tuple(
        Placement(
            piece.tensor,
            piece.of_tensor,
            (*parts, *piece.of_parameter),
            piece.transposed,
            piece.transposed_by_shape,
        )
        for target, tensor in enumerate(held)
        for piece in _pieces(tensor, form, (), _cut(form, target, targets))
    )
