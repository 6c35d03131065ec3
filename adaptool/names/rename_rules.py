"""The rules that lead from checkpoint tensor names to module parameter names.

transformers 5 renames, splits and merges tensors when it loads a checkpoint and reverts that when
it saves one. `renames.json` is generated from its conversion mapping: `rules` by model type or
class name, and by model type the `recipes`: which rules apply below which submodule. A recipe is
applied here in the direction of loading, which is the one that is defined for every checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

LONGEST_NAME = 256  # longer names are renamed by no rule: no checkpoint has them
MOST_READINGS = 16
_ROOT = "."
_LARGE = re.compile(r"(?<![^.])[1-9][0-9]{1,5}(?![^.])")
_STAND_IN = re.compile(r"(?<![0-9])9000[0-9]{2}(?![0-9])")
_FIRST_STAND_IN = 900_000
_MOST_STAND_INS = 100
_NUMBER = re.compile(r"[._]?(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Form:
    """How the module parameters of a converter are made of its checkpoint tensors.

    `stack`: tensors e = 0, 1, ... of each source are stacked on this new axis (`shared`: dealt out
    in equal runs to the targets). `join`: the sources are concatenated on this axis.
    `split`: the one tensor is cut into as many equal chunks as there are targets (`interleaved`:
    every n-th element). `unweave`: the even elements come first, then the odd ones.
    `transposed`: "yes", "by-shape" (where the shapes differ) or "". `refused`: by number of the
    target, the operation that is no index map.
    """

    stack: int | None = None
    join: int | None = None
    split: int | None = None
    unweave: int | None = None
    interleaved: bool = False
    shared: bool = False
    transposed: str = ""
    refused: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One transform. It applies to names below `scope` (with or without `base`); None: to all."""

    pattern: re.Pattern[str]
    targets: tuple[str, ...]
    sources: int = 1
    form: Form | None = None
    group: bool = False
    offset: int = 0
    scope: str | None = None
    base: str = ""


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a checkpoint tensor goes: module parameters, and as which source of which converter."""

    parameters: tuple[str, ...]
    rule: Rule | None = None
    source: int = 0
    star: int | None = None


@dataclass(frozen=True, slots=True)
class _Hit:
    names: tuple[str, ...]
    source: int
    star: int | None


class Reading:
    """One recipe: renamings in order, then at most one converter, as transformers loads."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Sort `rules` into renamings and converters, order kept."""
        every = tuple(rules)
        self._renamings = tuple(rule for rule in every if rule.form is None)
        self._converters = tuple(rule for rule in every if rule.form is not None)
        self._computes = any(rule.offset for rule in every)
        self.groups = tuple(rule for rule in self._renamings if rule.group)

    def reach(self, name: str, *, asleep: frozenset[int] = frozenset()) -> Reached:
        """The module parameters that the tensor `name` becomes.

        A group of renamings whose first pattern no tensor matches is `asleep` (its place in
        `groups`): then the checkpoint has the new names already.
        """
        if len(name) > LONGEST_NAME:
            return Reached((name,))
        skipped = {id(self.groups[place]) for place in asleep}
        for rule in self._renamings:
            if (hit := applied(rule, name)) and not (hit.source and id(rule) in skipped):
                name = hit.names[0]
        for rule in self._converters:
            if hit := applied(rule, name):
                return Reached(hit.names, rule, hit.source, hit.star)
        return Reached((name,))

    def reach_all(self, names: Iterable[str]) -> Iterator[tuple[str, Reached]]:
        """Every name of a checkpoint with what `reach` says of it.

        No rule looks at the value of an index above 9 (the generator checks that), so names that
        differ in such indices only share one answer.
        """
        every = [(name, *self._masked(name)) for name in names]
        masks = {mask for _, mask, _ in every}
        asleep = self._asleep(masks)
        answers = {mask: self.reach(mask, asleep=asleep) for mask in masks}
        for name, mask, indices in every:
            yield name, _unmasked(answers[mask], indices)

    def _masked(self, name: str) -> tuple[str, list[str]]:
        indices = [] if self._computes or "9000" in name else _LARGE.findall(name)
        if not 0 < len(indices) <= _MOST_STAND_INS:
            return name, []
        stand_ins = iter(range(_FIRST_STAND_IN, _FIRST_STAND_IN + len(indices)))
        return _LARGE.sub(lambda _: str(next(stand_ins)), name), indices

    def _asleep(self, names: Iterable[str]) -> frozenset[int]:
        """Which groups stay asleep over a whole checkpoint."""
        waiting = dict(enumerate(self.groups))
        for name in names if waiting else ():
            for rule in self._renamings if len(name) <= LONGEST_NAME else ():
                if hit := applied(rule, name):
                    name = hit.names[0]  # noqa: PLW2901 - the renamings chain
                    if rule.group and hit.source == 0:
                        waiting = {k: other for k, other in waiting.items() if other is not rule}
        return frozenset(waiting)


def _unmasked(reached: Reached, indices: Sequence[str]) -> Reached:
    if not indices:
        return reached

    def index(found: re.Match[str]) -> str:
        return indices[int(found[0]) - _FIRST_STAND_IN]

    parameters = tuple(_STAND_IN.sub(index, name) for name in reached.parameters)
    star = reached.star
    if star is not None and star >= _FIRST_STAND_IN:
        star = int(indices[star - _FIRST_STAND_IN])
    return Reached(parameters, reached.rule, reached.source, star)


def applied(rule: Rule, name: str) -> _Hit | None:
    """What `rule` makes of `name`; None where it does not match."""
    start = _scope_length(rule, name)
    if start is None:
        return None
    head, tail = name[:start], name[start:]
    found = rule.pattern.search(tail)
    if found is None:
        return None
    groups = found.groupdict()
    branch = next(key for key, text in groups.items() if text is not None and key[0] == "g")
    source = int(branch[1:])
    star = groups.get(f"s{source}")
    if star is not None and not _NUMBER.fullmatch(star):
        return None
    first = rule.pattern.groupindex[branch] + 1
    # As transformers does: the first occurrence of the matched text, wherever the match was.
    names = tuple(
        head + tail.replace(found[0], _filled(text, found, first, rule.offset), 1)
        for text in (rule.targets[source : source + 1] if rule.group else rule.targets)
    )
    return _Hit(names, source, None if star is None else int(star.lstrip("._")))


def _scope_length(rule: Rule, name: str) -> int | None:
    # transformers takes a scope with the base prefix before it, or without.
    if rule.scope is None:
        return 0
    scope = f"{rule.scope}." if rule.scope else ""
    base = f"{rule.base}." if rule.base else ""
    if name.startswith(base + scope):
        return len(base + scope)
    return len(scope) if name.startswith(scope) else None


def _filled(text: str, found: re.Match[str], first: int, offset: int) -> str:
    # Only \1 refers to a group: the first one inside the branch that matched.
    if r"\1" not in text:
        return text
    piece = found[first]
    return text.replace(r"\1", str(int(piece) + offset) if offset else piece)


# --- the table ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def table() -> Mapping[str, Any]:
    """The parsed renames.json. The file is ours, so its shape is trusted."""
    text = resources.files("adaptool.names").joinpath("renames.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


@lru_cache(maxsize=2048)
def _rule(key: str, number: int, scope: str | None, base: str) -> Rule:
    entry = _entries(key)[number]
    pattern = re.compile(entry["from"])
    sources = sum(name[0] == "g" for name in pattern.groupindex)
    form = Form(**entry["form"]) if "form" in entry else None
    group, offset = entry.get("group", False), entry.get("offset", 0)
    return Rule(pattern, tuple(entry["to"]), sources, form, group, offset, scope, base)


def _entries(key: str) -> list[dict[str, Any]]:
    entries = table()["rules"][key]
    while isinstance(entries, str):
        entries = table()["rules"][entries]
    found: list[dict[str, Any]] = entries
    return found


def known(model_type: str) -> bool:
    """Whether the table knows this model type."""
    return model_type in table()["models"]


def base_prefixes(model_types: Sequence[str]) -> tuple[str, ...]:
    """The base prefixes of these types, outermost first; of every type where none is known."""
    models = table()["models"]
    own = [prefix for kind in model_types if kind in models for prefix in models[kind]["prefixes"]]
    if not own:
        own = sorted({prefix for entry in models.values() for prefix in entry["prefixes"]})
    return tuple(dict.fromkeys(own))


def readings(model_types: Sequence[str], classes: Sequence[str] = ()) -> tuple[Reading, ...]:
    """The distinct recipes that may have applied to a model of these types, outermost first.

    Where the table knows one of the `classes` (config.architectures), only that class's.
    Always at least one: names that transformers renames in every model (`LayerNorm.gamma`).
    """
    return _readings(tuple(dict.fromkeys(model_types)), tuple(classes))


@lru_cache(maxsize=1024)
def _readings(model_types: tuple[str, ...], classes: tuple[str, ...]) -> tuple[Reading, ...]:
    found: dict[tuple[tuple[str, str], ...], Reading] = {}
    for base, steps in _recipes(model_types, classes):
        found.setdefault(steps, Reading(_rules(base, steps)))
    return tuple(found.values())[:MOST_READINGS] or (Reading(_rules("", ())),)


@lru_cache(maxsize=1)
def every_reading() -> tuple[tuple[str, Reading], ...]:
    """Every distinct recipe of every family, with the first model type that has it."""
    found: dict[tuple[tuple[str, str], ...], tuple[str, Reading]] = {}
    for kind in sorted(table()["models"]):
        for base, steps in _recipes((kind,), ()):
            if steps not in found:
                found[steps] = (kind, Reading(_rules(base, steps)))
    return tuple(found.values())


def kinds_named(text: str) -> tuple[str, ...]:
    """The model types that a text names, as `Qwen2.5-VL-7B` does `qwen2_5_vl`: the longest one's.

    () where none of four letters or more stands in it.
    """
    plain = _plain(text)
    found = [kind for kind in table()["models"] if len(_plain(kind)) > 3 and _plain(kind) in plain]
    most = max((len(_plain(kind)) for kind in found), default=0)
    return tuple(kind for kind in found if len(_plain(kind)) == most)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _rules(base: str, steps: tuple[tuple[str, str], ...]) -> list[Rule]:
    every: list[Rule] = []
    for place, key in (*steps, (_ROOT, "legacy")):
        scope = None if place == _ROOT else place
        owner = base if scope is not None else ""
        every += [_rule(key, number, scope, owner) for number in range(len(_entries(key)))]
    return every


def _recipes(
    model_types: tuple[str, ...], classes: tuple[str, ...]
) -> Iterable[tuple[str, tuple[tuple[str, str], ...]]]:
    models = table()["models"]
    outer = next((kind for kind in model_types if kind in models), None)
    if outer is None:
        return
    inner = [kind for kind in model_types if kind in models and kind != outer]
    for recipe in _of_classes(_own_recipes(outer), classes):
        # A slot takes any model. Where the config names another type than the default one, the
        # rules of that type apply below the slot. Which of several slots it is in is not known,
        # but a rule for a language model does not match in a vision tower.
        free = [slot for slot, kind in recipe.get("slots", ()) if inner and kind not in inner]
        foreign = [kind for kind in inner if kind not in recipe.get("inner", ())] if free else []
        usual = [(place, key) for place, key in recipe["apply"] if not _is_below(place, free)]
        counts = [len(_of_classes(_own_recipes(kind), ())) for kind in foreign]
        for choice in range(max(counts, default=1) or 1):
            steps = [step for slot in free for kind in foreign for step in _in(slot, kind, choice)]
            yield recipe["base"], tuple(dict.fromkeys((*usual, *steps)))


def _of_classes(
    recipes: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """The recipes of these classes; where none is known, every one that does something."""
    own = [recipe for recipe in recipes if not set(classes).isdisjoint(recipe["classes"])]
    return own or [recipe for recipe in recipes if recipe["apply"] or "slots" in recipe]


def _own_recipes(kind: str) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = table()["models"][kind].get("recipes", ())
    return found


def _is_below(place: str, slots: Sequence[str]) -> bool:
    return any(place == slot or place.startswith(f"{slot}.") for slot in slots)


def _in(slot: str, kind: str, choice: int) -> Iterator[tuple[str, str]]:
    # The classes of a type have recipes of their own; the slot holds one of them.
    recipes = _of_classes(_own_recipes(kind), ())
    for recipe in recipes[min(choice, len(recipes) - 1) :][:1]:
        for place, key in recipe["apply"]:
            yield slot if place == _ROOT else _below(slot, recipe["base"], place), key


def _below(slot: str, base: str, place: str) -> str:
    return ".".join(part for part in (slot, base, place) if part)
