"""The fields of a PEFT config that select: what is wrapped, saved whole, trained by rows.

They are written so that PEFT selects what the file holds and nothing else. The given ones stay
where they do that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptool.layouts.peft_scales import by_name, looked_up
from adaptool.model.adapter import Adapter, Replaced
from adaptool.model.base_modules import BaseModules, modules_of
from adaptool.model.reading import BaseNames
from adaptool.names.selection import ALL_LINEAR, FIELDS, Selection, endings, shortest

SHIFT = "shift"
# PEFT saves these unasked for such tasks: it looks for them whether or not they are named.
CLASSIFIERS = ("classifier", "score")
CLASSIFYING = frozenset({"SEQ_CLS", "TOKEN_CLS"})


@dataclass(frozen=True, slots=True)
class Held:
    """What a LoRA's file holds, by what PEFT must do to look for it.

    `modules` are wrapped, `parameters` targeted by name, `saved` modules taken whole, `rows` by
    module; `known` are the modules that are there.
    """

    modules: frozenset[str]
    parameters: frozenset[str]
    saved: frozenset[str]
    rows: Mapping[str, tuple[int, ...]]
    biases: bool
    known: BaseModules


def held(adapter: Adapter, base: BaseNames | None) -> Held:
    """What the adapter's file will hold."""
    factored = [delta for delta in adapter.deltas if delta.tuner != SHIFT]
    saved = {module_of(item) for item in adapter.replaced if _is_saved(item)}
    names = [delta.parameter for delta in adapter.deltas]
    names += [item.parameter for item in adapter.replaced]
    return Held(
        frozenset(looked_up(delta) for delta in factored if not by_name(delta)),
        frozenset(delta.parameter for delta in factored if by_name(delta)),
        frozenset(saved),
        {module_of(item): item.rows for item in adapter.replaced if item.rows is not None},
        any(
            item.parameter.endswith(".bias") and module_of(item) not in saved
            for item in adapter.replaced
        ),
        modules_of(names, base),
    )


def _is_saved(item: Replaced) -> bool:
    return item.rows is None and (item.saved_module or bool(item.tuner)) and not item.copied_base


def module_of(item: Replaced) -> str:
    """The module whose parameter the tensor is."""
    return item.parameter.rpartition(".")[0]


def selecting(config: Mapping[str, Any], found: Held) -> dict[str, Any]:
    """The selecting fields for what the file holds; `config` are those that were given."""
    fields: dict[str, Any] = {
        **_saved(config, found),
        **_parameters(config, found),
        **_rows(config, found),
        "bias": _bias(config, found),
    }
    return fields | _modules({**config, **fields}, found)


def _modules(config: Mapping[str, Any], found: Held) -> dict[str, Any]:
    """target_modules and what limits them: the given ones, or names that need no limit."""
    others = found.known.modules - found.modules
    if not found.modules:
        return {**_no_limits(config), "target_modules": []}
    given = Selection.of(config)
    if (
        given.targets != ALL_LINEAR
        and all(map(given.takes, found.modules))
        and not any(map(given.takes, others))
    ):
        # PEFT refuses a pattern for layers where none are given.
        pattern = {"layers_pattern": None} if given.layer_patterns and not given.layers else {}
        return {name: config[name] for name in FIELDS if name in config} | pattern
    names = _names(found.modules, others, found)
    # No ending, not even the whole path, tells these apart: PEFT takes a path that goes on before.
    chosen = frozenset(names)
    unwanted = sorted(path for path in others if not chosen.isdisjoint(endings(path)))
    limits = _no_limits(config) | ({"exclude_modules": unwanted} if unwanted else {})
    return {**limits, "target_modules": list(names)}


def _names(
    wanted: Collection[str], others: Collection[str], found: Held, least: int = 1
) -> tuple[str, ...]:
    """Endings where all modules of the base are known, else whole paths: a model may have more."""
    return shortest(wanted, others, least) if found.known.complete else tuple(sorted(wanted))


def _no_limits(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None for name in FIELDS if name in config}


def _parameters(config: Mapping[str, Any], found: Held) -> dict[str, Any]:
    """target_parameters: the given ones where they select what is there, else their own."""
    if not found.parameters:
        return {"target_parameters": None} if config.get("target_parameters") else {}
    given = Selection.of(config)
    others = found.known.parameters.keys() - found.parameters
    others |= {f"{module}.weight" for module in found.modules}
    if all(map(given.takes_parameter, found.parameters)) and not any(
        map(given.takes_parameter, others)
    ):
        return {}
    return {"target_parameters": list(_names(found.parameters, others, found, least=2))}


def _saved(config: Mapping[str, Any], found: Held) -> dict[str, Any]:
    """modules_to_save: the given names where they save what is there, else the modules' own."""
    given = Selection.of(config)
    if not found.saved:
        # Two tasks name both kinds of classifiers, whichever of them a model has.
        return {"modules_to_save": None} if config.get("modules_to_save") else {}
    whole = {path for module in found.saved for path in _above(module)}
    others = found.known.modules - whole
    kept = (
        all(any(map(given.saves, _above(module))) for module in found.saved)
        and not any(
            given.saves(module) and not any(map(given.saves, _above(module)[1:]))
            for module in others
        )
        and not _hides(given.saved, found.modules)
    )
    if kept:
        return {}
    return {"modules_to_save": [_ending(module, others, found) for module in sorted(found.saved)]}


def _above(module: str) -> list[str]:
    """The module and those that hold it."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _hides(saved: Sequence[str], modules: Collection[str]) -> bool:
    """Whether PEFT would leave out one of the wrapped modules, for a name that is saved."""
    hiding = Selection(frozenset(modules), saved=tuple(saved))
    return not all(map(hiding.takes, modules))


def _ending(module: str, others: Collection[str], found: Held) -> str:
    """The shortest name that saves the module alone: PEFT's rule knows no dots."""
    if not found.known.complete:
        return module
    return next(
        (name for name in endings(module) if not any(other.endswith(name) for other in others)),
        module,
    )


def _rows(config: Mapping[str, Any], found: Held) -> dict[str, Any]:
    """trainable_token_indices: the given ones where they are those of the tensors."""
    given = config.get("trainable_token_indices")
    if not found.rows:
        return {"trainable_token_indices": None} if given else {}
    wanted = {module: list(rows) for module, rows in found.rows.items()}
    if isinstance(given, Mapping):
        told = {
            module: next((list(given[name]) for name in endings(module) if name in given), None)
            for module in wanted
        }
        if told == wanted and len(given) == len(wanted):
            return {}
    if isinstance(given, list) and list(wanted.values()) == [given]:
        return {}
    return {"trainable_token_indices": wanted}


def _bias(config: Mapping[str, Any], found: Held) -> str:
    """Whether biases are trained: what was given where the file holds any."""
    if not found.biases:
        return "none"
    given = config.get("bias", "none")
    return given if isinstance(given, str) and given != "none" else "all"
