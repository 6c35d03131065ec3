"""Which names of several adapters mean one module, where no base can tell.

transformers' renames are tried, those of every family: where some of them lead names of two
adapters to one parameter, and all that do agree, that is what the names mean.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Delta
from adaptool.names.model_names import Home
from adaptool.names.rename_rules import Reading, every_reading, kinds_named
from adaptool.ops.naming import Naming

# The first number of a path counts layers; one behind `experts` counts those. Any other is part of
# a name: `mlp.layers.0` and `mlp.layers.1` are two modules.
_LAYER = re.compile(r"(?<![^.])\d+(?![^.])")
_EXPERT = re.compile(r"(?<=\bexperts\.)\d+(?![^.])")
# Components that one release or wrapper puts before a module's path and another does not.
_WRAPPERS = frozenset(
    {"model", "base_model", "language_model", "text_model", "vision_model", "module", "_orig_mod"}
)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A family's renames, and where they lead each spelling."""

    kind: str
    reading: Reading
    leads: Mapping[str, tuple[str, ...]]


def agreed(adapters: Sequence[Adapter]) -> Naming | None:
    """What the adapters' names mean; None where they are to be taken as they stand.

    MismatchError (exit 4) where two may mean one module and nothing decides.
    """
    spelled = [_spellings(adapter) for adapter in adapters]
    if all(
        one.keys() <= other.keys() or other.keys() <= one.keys()
        for one, other in combinations(spelled, 2)
    ):
        return None
    found = list(_candidates(spelled))
    if len({tuple(sorted(each.leads.items())) for each in found}) > 1:
        hinted = {kind for adapter in adapters for kind in _hints(adapter)}
        found = [each for each in found if each.kind in hinted] or found
    leads = {tuple(sorted(each.leads.items())) for each in found}
    if len(leads) == 1:
        return _naming(found[0], adapters)
    _refuse_doubtful(adapters, spelled, several=bool(leads))
    return None


def _spellings(adapter: Adapter) -> dict[str, str]:
    """The names of parameters by what they are in any layer: one name for each."""
    names = [delta.parameter for delta in adapter.deltas]
    names += [item.parameter for item in adapter.replaced]
    return {_masked(name): name for name in reversed(names)}


def _masked(name: str) -> str:
    return _LAYER.sub("#", _EXPERT.sub("#", name), count=1)


def _candidates(spelled: Sequence[Mapping[str, str]]) -> Iterator[_Candidate]:
    """The families under whose renames names of two adapters meet."""
    union = {mask: name for each in spelled for mask, name in each.items()}
    for kind, reading in every_reading():
        leads = {mask: reading.reach(name).parameters for mask, name in union.items()}
        if all(targets == (union[mask],) for mask, targets in leads.items()):
            continue
        places = [_led(each, leads) for each in spelled]
        if _meet(places) and not any(_folds(each, reading, union) for each in places):
            yield _Candidate(kind, reading, leads)


def _led(spelled: Iterable[str], leads: Mapping[str, tuple[str, ...]]) -> dict[str, set[str]]:
    """The spellings by where they lead."""
    found: dict[str, set[str]] = defaultdict(set)
    for mask in spelled:
        for target in leads[mask]:
            found[_masked(target)].add(mask)
    return found


def _meet(places: Sequence[Mapping[str, set[str]]]) -> bool:
    """Whether two adapters spell one parameter differently."""
    return any(
        one[target] != other[target]
        for one, other in combinations(places, 2)
        for target in one.keys() & other.keys()
    )


def _folds(places: Mapping[str, set[str]], reading: Reading, union: Mapping[str, str]) -> bool:
    """Whether two modules of one adapter would be one."""
    return any(
        len(masks) > 1 and any(reading.reach(union[mask]).rule is None for mask in masks)
        for masks in places.values()
    )


def _hints(adapter: Adapter) -> Iterator[str]:
    """The families that the config names: by PEFT's `auto_mapping`, or in the base's name."""
    mapping = adapter.config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
    for text in (library, (adapter.base or "").rpartition("/")[2]):
        if isinstance(text, str):
            yield from kinds_named(text)


def _naming(found: _Candidate, adapters: Sequence[Adapter]) -> Naming:
    def home(parameter: str, _: Delta | None) -> Home | None:
        reached = found.reading.reach(parameter)
        if reached.rule is None or reached.rule.form is None:
            return Home(reached.parameters[0])
        form = reached.rule.form
        if len(reached.parameters) > 1 or form.stack != 0 or form.transposed or form.refused:
            return None
        return Home(reached.parameters[0], reached.star, reached.source, reached.rule.sources)

    counts: dict[str, int] = {}
    for delta in (delta for adapter in adapters for delta in adapter.deltas):
        at = home(delta.parameter, delta)
        if at is not None:
            known = delta.terms.experts if at.expert is None else at.expert + 1
            counts[at.parameter] = max(known, counts.get(at.parameter, 0))
    return Naming(home, lambda parameter: counts.get(parameter, 0), frozenset({found.kind}))


def _refuse_doubtful(
    adapters: Sequence[Adapter], spelled: Sequence[Mapping[str, str]], *, several: bool
) -> None:
    """MismatchError where names differ in nothing but wrappers, or in what families disagree on."""
    for (one, ours), (other, theirs) in combinations(zip(adapters, spelled, strict=True), 2):
        pair = _doubtful(ours, theirs)
        if pair is None and not several:
            continue
        first, second = pair or (next(iter(ours.values())), next(iter(theirs.values())))
        message = f"may be what {other.name} calls {second}: names of another release or class"
        hint = "--base BASE decides (only its config and headers are read)"
        raise MismatchError(
            message, code=Code.SHAPE_AMBIGUOUS, file=one.name, tensor=first, hint=hint
        )


def _doubtful(ours: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[str, str] | None:
    """Two names of places that are the same but for wrappers; None for none."""
    mine, others = _places(ours), _places(theirs)
    inside = [
        {_loose(place) for place in side if _count(side, place) > 1} for side in (mine, others)
    ]
    for place, name in mine.items():
        for other, named in others.items():
            same = place != other and _loose(place) == _loose(other)
            known = place in others or other in mine
            if same and not known and _loose(place) not in inside[0] | inside[1]:
                return name, named
    return None


def _places(spelled: Mapping[str, str]) -> dict[str, str]:
    """What stands before the first number of a name, or all of it, with a name."""
    return {mask.partition(".#.")[0]: name for mask, name in spelled.items()}


def _count(places: Iterable[str], place: str) -> int:
    return sum(_loose(other) == _loose(place) for other in places)


def _loose(place: str) -> tuple[str, ...]:
    return tuple(part for part in place.split(".") if part not in _WRAPPERS)
