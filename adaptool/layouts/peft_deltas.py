"""From a PEFT file's sorted tensors to deltas: which tuner they are of, and what they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptool.errors import AdaptoolError, InputError
from adaptool.findings import Code
from adaptool.layouts.merged_linear import unmerged
from adaptool.layouts.peft_keys import Sorted
from adaptool.layouts.peft_modules import ModuleNames, pattern_name
from adaptool.model.adapter import Delta, Replaced, Terms
from adaptool.model.tuner import Carrying, Declaration, Effect, Spreading, Tuner
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

# Initialisations that changed the base's weights before training began.
_EMBEDDING_ROLES = {"embedding_A", "embedding_B"}
_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(slots=True)
class Decoded:
    """What the modules' tensors are, and what was wrong with some of them."""

    deltas: list[Delta] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    errors: list[AdaptoolError] = field(default_factory=list)


def changed_base(config: Mapping[str, Any]) -> str | None:
    """The initialisation that changed the base's weights before training began."""
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGING_INITS):
        return init.lower()
    return None


def decode_modules(config: Mapping[str, Any], found: Sorted, names: ModuleNames) -> Decoded:
    """Every module's deltas, errors collected; shared tensors that nobody takes are unused."""
    decoded = Decoded()
    for module, roles in found.roles.items():
        try:
            _decode_module(decoded, config, module, roles, shared=found.shared, names=names)
        except AdaptoolError as error:
            decoded.errors.append(error)
    taken = {ref.name for delta in decoded.deltas for ref in delta.roles.values()}
    if not decoded.errors:
        found.unused += [ref for ref in found.shared.values() if ref.name not in taken]
    return decoded


def _decode_module(
    decoded: Decoded,
    config: Mapping[str, Any],
    module: str,
    own: Mapping[str, TensorRef],
    *,
    shared: Mapping[str, TensorRef],
    names: ModuleNames,
) -> None:
    name, tuner = _tuner_of(config, module, set(own), set(shared))
    common = {
        role: ref
        for role, ref in shared.items()
        if role not in own and tuner.DECLARATION.knows(role)
    }
    roles: Mapping[str, TensorRef] = {**own, **common}
    if name == "lora":  # PEFT up to 0.2 stored fused projections as grouped convolutions
        config, roles = unmerged(config, roles)
    for role, ref in roles.items():
        _check_factor(role, ref, tuner.DECLARATION)
    if isinstance(tuner, Carrying):
        decoded.replaced += tuner.carried(config, module.replace(".base_layer", ""), roles)
        return
    parameter = names.parameter(module)
    lookup = parameter if names.is_parameter(module) else pattern_name(module)
    shapes = {role: ref.shape for role, ref in roles.items()}
    terms = names.adjusted(module, tuner.terms(config, lookup, shapes))
    counted = frozenset(common)
    for effect in _effects(tuner, terms, shapes):
        decoded.deltas.append(
            Delta(
                module,
                _beside(parameter, effect.parameter),
                effect.tuner or name,
                {role: ref for role, ref in roles.items() if role in effect.roles},
                effect.terms,
                shared=counted & effect.roles,
                optional=effect.optional,
                reads={role: _beside(parameter, leaf) for role, leaf in effect.reads.items()},
            )
        )
        counted |= effect.roles


def _effects(tuner: Tuner, terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> Sequence[Effect]:
    if isinstance(tuner, Spreading):
        return tuner.effects(terms, shapes)
    return (Effect("weight", frozenset(shapes), terms),)


def _beside(parameter: str, leaf: str) -> str:
    """The layer's parameter `leaf`; a parameter that is targeted by name has none beside it."""
    return parameter if leaf == "weight" else parameter.removesuffix("weight") + leaf


def _check_factor(role: str, ref: TensorRef, declared: Declaration) -> None:
    if not ref.dtype.floating and not declared.is_index(role):
        message = f"dtype {ref.dtype.name} is no floating-point number"
        raise InputError(message, code=Code.DTYPE_NOT_FLOAT, tensor=ref.name)
    if not ref.elements and not declared.may_be_empty:
        message = f"shape {list(ref.shape)} holds no element"
        raise InputError(message, code=Code.ZERO_SIZE, tensor=ref.name)


def _tuner_of(
    config: Mapping[str, Any], module: str, own: set[str], shared: set[str]
) -> tuple[str, Tuner]:
    """The tuner that knows every role here and needs most of them."""
    peft_type = str(config["peft_type"])
    init = changed_base(config)
    special = {tuner.DECLARATION.init for tuner in tuners().values()}
    # PEFT knows no such beginning for an embedding: its factors are a plain LoRA's.
    wanted = init if init in special and not own & _EMBEDDING_ROLES else ""
    fitting = [
        (bool(declared.switch), len(declared.required), name)
        for name, declared in ((name, tuner.DECLARATION) for name, tuner in tuners().items())
        if declared.serves(peft_type)
        and declared.init == wanted
        and (not declared.switch or config.get(declared.switch))
        and declared.required <= own | shared
        and all(declared.knows(role) for role in own)
    ]
    if not fitting:
        message = f"no {peft_type} tuner knows the tensors {sorted(own)} together"
        raise InputError(message, code=Code.KEYS_UNRECOGNISED, tensor=module)
    name = max(fitting)[-1]
    return name, tuners()[name]


def token_rows(config: Mapping[str, Any], tokens: Mapping[str, TensorRef]) -> list[Replaced]:
    """Trained token rows: row k of the tensor replaces row indices[k] of the embedding."""
    indices = config.get("trainable_token_indices")
    found = []
    for module, ref in tokens.items():
        rows = _indices_of(indices, module)
        if rows is None and isinstance(indices, Mapping) and len(indices) == 1:
            rows = list(next(iter(indices.values())))  # a tied module's copy of them
        if rows is None or len(ref.shape) != 2 or len(rows) != ref.shape[0]:
            count = "no" if rows is None else str(len(rows))
            message = f"{ref.shape[0]} trained rows, the config names {count} token indices"
            raise InputError(
                message, code=Code.SHAPE_MISMATCH, tensor=ref.name, field="trainable_token_indices"
            )
        plain = module.replace(".base_layer", "")
        found.append(Replaced(f"{plain}.weight", ref, rows=tuple(rows)))
    return found


def _indices_of(indices: object, module: str) -> list[int] | None:
    if isinstance(indices, list):
        return indices
    if isinstance(indices, Mapping):
        for name, rows in indices.items():
            if module == name or module.endswith("." + name):
                return list(rows)
    return None
