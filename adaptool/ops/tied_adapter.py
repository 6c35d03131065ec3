"""What an adapter holds for one name of tied weights, put under the other names that PEFT ties too.

PEFT adapts modules, each of which has a name of its own. It reaches the others with trained token
rows, with `ensure_weight_tying`, and with plain copies of the base, which it loads into the one
tensor. Everything else changes the named side alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.names.resolver import Resolver
from adaptool.ops.alike import same_bytes_of
from adaptool.ops.drafts import Drafts
from adaptool.ops.ties import Group, Ties


@dataclass(slots=True)
class _Held:
    """What an adapter holds for one name."""

    deltas: list[Delta] = field(default_factory=list)
    whole: list[Replaced] = field(default_factory=list)
    rows: list[Replaced] = field(default_factory=list)


def spread(adapter: Adapter, ties: Ties, drafts: Drafts, kinds: Sequence[str]) -> Adapter:
    """The adapter with its changes of tied weights under every name that they reach."""
    deltas: list[Delta] = []
    replaced: list[Replaced] = []
    for group, held in _held(adapter, ties, drafts, kinds):
        replaced += _rows(group, held)
        replaced += _copies(group, held)
        if adapter.keeps_ties:
            ours, theirs = _tied(group, held)
            deltas += ours
            replaced += theirs
    if not deltas and not replaced:
        return adapter
    return replace(
        adapter,
        deltas=(*adapter.deltas, *deltas),
        replaced=(*adapter.replaced, *replaced),
    )


def spread_deltas(adapter: Adapter, ties: Ties, drafts: Drafts, kinds: Sequence[str]) -> Adapter:
    """The adapter with every delta under every name: what was taken from the tensor itself."""
    more = [
        replace(delta, parameter=name)
        for group, held in _held(adapter, ties, drafts, kinds)
        for origin in group.names
        for delta in held[origin].deltas
        for name in group.names
        if name != origin and _is_one(group, origin, name)
    ]
    return replace(adapter, deltas=(*adapter.deltas, *more))


def _held(
    adapter: Adapter, ties: Ties, drafts: Drafts, kinds: Sequence[str]
) -> Iterator[tuple[Group, dict[str, _Held]]]:
    """Every group that the adapter holds something for, with what it is by name."""
    if not ties.groups:
        return
    resolver = Resolver(drafts, kinds)
    known = {name: _Held() for group in ties.groups for name in group.names}
    ends = {_end(name) for name in known}
    for delta in adapter.deltas:
        if (place := _place(delta.parameter, ends, resolver)) in known:
            known[place].deltas.append(delta)
    for item in adapter.replaced:
        if (place := _place(item.parameter, ends, resolver)) in known:
            mine = known[place]
            (mine.whole if item.rows is None else mine.rows).append(item)
    for group in ties.groups:
        held = {name: known[name] for name in group.names}
        if any(each.deltas or each.whole or each.rows for each in held.values()):
            yield group, held


def _end(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def _place(parameter: str, ends: set[str], resolver: Resolver) -> str:
    """The tensor that the parameter is; the resolver is asked where that may be a tied one."""
    if any(part.isdigit() for part in parameter.split(".")) and _end(parameter) not in ends:
        return ""
    found = resolver.resolve(parameter, lambda _: False)
    return found.placements[0].tensor if found is not None else ""


def _rows(group: Group, held: dict[str, _Held]) -> Iterator[Replaced]:
    """Token rows of the input embedding; a name with rows or a module of its own keeps those."""
    for name in group.names[1:]:
        theirs = held[name]
        if not theirs.rows and not any(item.saved_module for item in theirs.whole):
            yield from (replace(item, parameter=name) for item in held[group.names[0]].rows)


def _copies(group: Group, held: dict[str, _Held]) -> Iterator[Replaced]:
    """Plain copies, of a resized vocabulary say; a copy beside a delta is the base's own."""
    for origin in group.names:
        copies = [item for item in held[origin].whole if not item.saved_module]
        if not copies or (held[origin].deltas and not _is_resized(group, copies[0])):
            continue
        for name in group.names:
            if name != origin and not held[name].whole and _is_one(group, origin, name):
                yield from (replace(item, parameter=name) for item in copies)
        return


def _is_resized(group: Group, item: Replaced) -> bool:
    return all(item.value.shape != ref.shape for ref in group.stored.values())


def _is_one(group: Group, left: str, right: str) -> bool:
    """Whether both names are one tensor in the base."""
    stored = [group.stored.get(name, group.stored[group.first]) for name in (left, right)]
    return same_bytes_of(stored[0], stored[1])


def _tied(group: Group, held: dict[str, _Held]) -> tuple[list[Delta], list[Replaced]]:
    """The embedding's deltas or its saved module, for the names that have none of their own."""
    ours = held[group.names[0]]
    saved = [item for item in ours.whole if item.saved_module]
    theirs = {name: held[name] for name in group.names[1:]}
    bare = [
        name
        for name, other in theirs.items()
        if not other.deltas and not any(item.saved_module for item in other.whole)
    ]
    deltas = [replace(delta, parameter=name) for name in bare for delta in ours.deltas]
    empty = [name for name, other in theirs.items() if not other.whole]
    return deltas, [replace(item, parameter=name) for name in empty for item in saved]
