"""The keys of a PEFT file, sorted by what they are.

A key is `base_model.model.<module path>.<ending>`, or `base_model.<name>` for a tensor that all
modules share; endings and names are those that tuners declare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code
from adaptool.model.adapter import Replaced
from adaptool.model.tuner import role_of
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.stored_twice import stored_twice
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

PREFIX = "base_model.model."
SHARED = "base_model."
ROWS_ENDING = "token_adapter.trainable_tokens_delta"
# What `modules_to_save` set aside: PEFT writes it along with biases and resized embeddings.
ORIGINAL = ".original_module."
LONGEST_ENDING = 3
# First components of endings that some tuner of PEFT writes: what has one and is not known here
# must never pass for a tensor that replaces the base's.
_TUNER_WORDS = re.compile(
    r"(lora|hada|lokr|ia3|oft|boft|hra|vera|fourierft|waveft|vblora|unilora|miss|bone|randlora|"
    r"shira|c3a|road|delora|gralora|hira|glora|deft|psoft|peanut|tinylora|osf|supertuning|frod|"
    r"beft|adamss|ln_tuning|prompt|token_adapter|trainable_tokens)(_|$)"
)
_NAMED = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"\.(?!weight$|bias$)([^.]+)"
)
# What PEFT's wrappers put between a module and its parameter.
SAVED = "modules_to_save"
ROWS_BASE = "token_adapter.base_layer."


@dataclass(slots=True)
class Sorted:
    """The file's tensors: by module and role, shared by role, trained token rows, whole ones."""

    roles: dict[str, dict[str, TensorRef]] = field(default_factory=dict)
    shared: dict[str, TensorRef] = field(default_factory=dict)
    tokens: dict[str, TensorRef] = field(default_factory=dict)
    replaced: list[Replaced] = field(default_factory=list)
    leftover: list[TensorRef] = field(default_factory=list)
    unused: list[TensorRef] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Names:
    """Key endings and shared names -> role, of every tuner that a PEFT type may mean."""

    endings: Mapping[str, str]
    shared: Mapping[str, str]


def sort_keys(files: AdapterFiles, config: Mapping[str, Any]) -> Sorted:
    """Every tensor in its place; InputError where two keys name the same one."""
    names = _names(str(config["peft_type"]))
    found = Sorted()
    seen: dict[str, str] = {}
    adapters = _adapter_names(files.tensors)
    whole: list[Replaced] = []
    biased = config.get("bias", "none") != "none"
    for key, ref in files.tensors.items():
        if not key.startswith(PREFIX):
            _sort_shared(found, key, ref, names)
            continue
        rest = _NAMED.sub(r".\1", "." + key.removeprefix(PREFIX))[1:]
        if rest in seen:
            message = f"names the same place as {seen[rest]!r}"
            raise InputError(
                message, code=Code.SLOT_TAKEN_TWICE, file=files.source.name, tensor=key
            )
        seen[rest] = key
        if not _sort_key(found, rest, ref, names):
            whole.append(_replaced(rest, ref, adapters, biased=biased))
    found.replaced += _folded(whole)
    return found


def _adapter_names(keys: Iterable[str]) -> frozenset[str]:
    """Names of adapters that keys may hold; PEFT saves without them, raw state dicts have them."""
    return frozenset({"default", *(match[2] for key in keys for match in _NAMED.finditer(key))})


def _names(peft_type: str) -> _Names:
    """Of this PEFT type's tuners, and of those that belong to none."""
    declared = [tuner.DECLARATION for tuner in tuners().values()]
    mine = [entry for entry in declared if entry.serves(peft_type) or not entry.peft_type]
    endings = {ending: role for entry in mine for ending, role in entry.keys.items()}
    shared = {name: role for entry in mine for name, role in entry.shared.items()}
    return _Names(endings, shared)


def _sort_shared(found: Sorted, key: str, ref: TensorRef, names: _Names) -> None:
    role = role_of(names.shared, key.removeprefix(SHARED)) if key.startswith(SHARED) else None
    if role is None:
        found.leftover.append(ref)
    else:
        found.shared[role] = ref


def _sort_key(found: Sorted, rest: str, ref: TensorRef, names: _Names) -> bool:
    """Put the tensor in its place; False where it is a whole one of the base's."""
    if rest.endswith("." + ROWS_ENDING):
        found.tokens[rest.removesuffix("." + ROWS_ENDING)] = ref
        return True
    if ORIGINAL in rest:
        found.unused.append(ref)
        return True
    rest = rest.replace(ROWS_BASE, "base_layer.")
    module, role = _split(rest, names.endings)
    if role is not None:
        found.roles.setdefault(module, {})[role] = ref
    elif any(_TUNER_WORDS.match(part) for part in rest.split(".")):
        found.leftover.append(ref)
    else:
        return False
    return True


def _split(rest: str, endings: Mapping[str, str]) -> tuple[str, str | None]:
    """`a.b.lora_A.weight` -> (`a.b`, the role); None where no ending is known."""
    parts = rest.split(".")
    for count in range(min(LONGEST_ENDING, len(parts) - 1), 0, -1):
        role = role_of(endings, ".".join(parts[-count:]))
        if role is not None:
            return ".".join(parts[:-count]), role
    return rest, None


def _replaced(rest: str, ref: TensorRef, adapters: frozenset[str], *, biased: bool) -> Replaced:
    """A whole tensor; `biased`: PEFT trained, and saved, whatever has "bias" in its name."""
    plain = rest.replace(ROWS_BASE, "base_layer.").replace(".base_layer.", ".")
    saved = _without_wrapper(plain, adapters)
    copied = ".base_layer." in rest.replace(ROWS_BASE, "base_layer.")
    trained = biased and "bias" in saved
    return Replaced(saved, ref, copied_base=copied and not trained, saved_module=saved != plain)


def _without_wrapper(path: str, adapters: frozenset[str]) -> str:
    """`X.modules_to_save[.ADAPTER].y.weight` as `X.y.weight`."""
    module, found, inside = path.partition(f".{SAVED}.")
    if not found:
        return path
    first, _, others = inside.partition(".")
    return f"{module}.{others if others and first in adapters else inside}"


def _folded(whole: Iterable[Replaced]) -> list[Replaced]:
    """One entry for each parameter; InputError, with all others, where names contradict.

    `save_embedding_layers`, a resized vocabulary and `bias="all"` make PEFT write a saved module
    as `X.weight`, which it loads, and once more as `X.modules_to_save.weight`.
    """
    by_parameter: dict[str, list[Replaced]] = {}
    for item in whole:
        by_parameter.setdefault(item.parameter, []).append(item)
    made: list[Replaced] = []
    errors: list[AdaptoolError] = []
    for items in by_parameter.values():
        try:
            for item in items:
                _check_filled(item.value)
            made.append(reduce(_as_one, sorted(items, key=lambda item: item.saved_module)))
        except InputError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return made


def _check_filled(ref: TensorRef) -> None:
    if not ref.elements:
        message = f"shape {list(ref.shape)} holds no element"
        hint = "ZeRO-3 leaves such tensors where weights are not gathered: save the adapter again"
        raise InputError(message, code=Code.ZERO_SIZE, file=ref.file, tensor=ref.name, hint=hint)


def _as_one(first: Replaced, second: Replaced) -> Replaced:
    return replace(
        first,
        value=stored_twice(first.value, second.value),
        copied_base=first.copied_base and second.copied_base,
        saved_module=first.saved_module or second.saved_module,
    )
