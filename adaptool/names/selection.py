"""Which modules PEFT wraps, and which it saves whole, for the fields of a config.

Source: PEFT 0.21.2, `check_target_module_exists`, `_set_trainable`, `_inject_parameters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptool.names.patterns import LONGEST_PATH

FIELDS = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
)
"""The fields that together select what is wrapped, besides `modules_to_save`."""
ALL_LINEAR = "all-linear"
_FIRST_NUMBER = r".*?\.[^.]*\.(?P<idx>\d+)\."


@dataclass(frozen=True, slots=True)
class Selection:
    """The selecting fields of a config; an expression is a str, a list of names a frozenset."""

    targets: str | frozenset[str]
    exclude: str | frozenset[str] = frozenset()
    layers: frozenset[int] | None = None
    layer_patterns: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    parameters: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Selection:
        """The selection of a config whose fields were checked."""
        layers = config.get("layers_to_transform")
        given = [layers] if isinstance(layers, int) else layers
        pattern = config.get("layers_pattern") or ()
        return cls(
            _names(config.get("target_modules")),
            _names(config.get("exclude_modules")),
            frozenset(given) if given else None,
            (pattern,) if isinstance(pattern, str) else tuple(pattern),
            tuple(config.get("modules_to_save") or ()),
            frozenset(config.get("target_parameters") or ()),
        )

    @property
    def is_limited(self) -> bool:
        """Whether more than the targets' names decides."""
        return bool(self.exclude) or self.layers is not None

    def takes(self, module: str) -> bool:
        """Whether an adapter is put on `module`, where its kind of layer can have one.

        `all-linear` takes all; only a model tells which of them are linear.
        """
        if self.exclude and _is_named(module, self.exclude):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module[:LONGEST_PATH]) for name in self.saved):
            return False
        if self.targets == ALL_LINEAR:
            return True
        if isinstance(self.targets, str) or module in self.targets:
            return _is_named(module, self.targets)
        return _is_named(module, self.targets) and self._is_in_layers(module)

    def _is_in_layers(self, module: str) -> bool:
        """Layers limit names that are endings, neither whole paths nor expressions."""
        if self.layers is None:
            return True
        path = module[:LONGEST_PATH]
        patterns = [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in self.layer_patterns]
        found = [re.match(pattern, path) for pattern in patterns or [_FIRST_NUMBER]]
        index = next((int(match["idx"]) for match in found if match), None)
        return index in self.layers

    def saves(self, module: str) -> bool:
        """Whether `module` is saved whole: its path ends with a name, not even at a dot."""
        return module.endswith(self.saved) if self.saved else False

    def takes_parameter(self, parameter: str) -> bool:
        """Whether the parameter is targeted by its own name."""
        return bool(self.parameters) and _is_named(parameter, self.parameters)

    def without_limits(self) -> Selection:
        """The same targets wherever they are."""
        return replace(self, exclude=frozenset(), layers=None, layer_patterns=())


def _names(value: object) -> str | frozenset[str]:
    if isinstance(value, str):
        return value
    return frozenset(value) if isinstance(value, Sequence | set | frozenset) else frozenset()


def _is_named(path: str, names: str | frozenset[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path[:LONGEST_PATH]) is not None
    return any(ending in names for ending in endings(path))


def endings(path: str) -> Iterator[str]:
    """`a.b.c`: `c`, `b.c`, `a.b.c`."""
    at = path.rfind(".")
    while at >= 0:
        yield path[at + 1 :]
        at = path.rfind(".", 0, at)
    yield path


def shortest(wanted: Iterable[str], others: Iterable[str], least: int = 1) -> tuple[str, ...]:
    """Names of at least `least` parts that end every wanted path and none of `others`, sorted.

    A path that no ending tells from the others stands whole. Names never begin with a number
    where a longer one is there: `to_out.0`, not `0`.
    """
    taken = {ending for path in others for ending in endings(path)}
    return tuple(sorted({_shortest(path, taken, least) for path in wanted}))


def _shortest(path: str, taken: set[str], least: int) -> str:
    for ending in endings(path):
        parts = ending.count(".") + 1
        numbered = _is_number(ending.partition(".")[0])
        if parts >= least and not numbered and ending not in taken:
            return ending
    return path


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) <= _MOST_DIGITS


_MOST_DIGITS = 9


def with_containers(modules: Iterable[str]) -> set[str]:
    """The modules, those that hold them, and those that a numbered one stands behind.

    A layer called `1` is the second of a sequence, whose first may have no weights.
    """
    found: set[str] = set()
    for module in modules:
        path = module
        while path and path not in found:
            found.add(path)
            parent, _, last = path.rpartition(".")
            if last == "1":
                found.add(f"{parent}.0" if parent else "0")
            path = parent
    return found
