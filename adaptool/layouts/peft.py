"""PEFT's own layout: adapter_config.json and adapter_model.safetensors.

A key is `base_model.model.<module path>.<ending>`; endings are the tuners' (`lora_A.weight`).
A key without one is a tensor that replaces the base's: modules_to_save, biases, `.base_layer.`
copies of the base, trained token rows. Source: PEFT 0.21.2, `get_peft_model_state_dict`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptool.errors import AdaptoolError, InputError, MismatchError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import Evidence
from adaptool.layouts.peft_config import check_config
from adaptool.layouts.peft_encode import encode, losses
from adaptool.layouts.peft_modules import ModuleNames
from adaptool.layouts.peft_review import review
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.model.tuner import Tuner
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

__all__ = ["TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "PEFT"
PREFIX = "base_model.model."
TOKEN_ROWS = ("token_adapter.trainable_tokens_delta", "trainable_tokens_delta")
# What `modules_to_save` set aside: PEFT writes it along with biases and resized embeddings.
ORIGINAL = ".original_module."
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
_SAVED = re.compile(r"\.modules_to_save(\.[^.]+)?(?=\.(weight|bias)$)")


def sniff(files: AdapterFiles) -> Evidence:
    """PEFT's are the keys below `base_model.`."""
    unclaimed = tuple(name for name in files.tensors if not name.startswith("base_model."))
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{claimed} keys begin with base_model.")


@dataclass(slots=True)
class _Sorted:
    """The file's keys, sorted by what they are."""

    roles: dict[str, dict[str, TensorRef]] = field(default_factory=dict)
    shifts: dict[str, TensorRef] = field(default_factory=dict)
    tokens: dict[str, TensorRef] = field(default_factory=dict)
    replaced: list[Replaced] = field(default_factory=list)
    leftover: list[TensorRef] = field(default_factory=list)
    unused: list[TensorRef] = field(default_factory=list)


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError (with every other problem) where it contradicts itself."""
    if files.config is None:
        message = "no adapter_config.json and no config in the metadata: the scale is unknown"
        hint = "put the adapter_config.json it was trained with beside it"
        raise InputError(message, code=Code.CONFIG_MISSING, file=files.source.name, hint=hint)
    findings = list(files.findings) + list(check_config(files.config, files.config_file))
    _refuse_unsupported(files)
    names = ModuleNames(files.config, files.tensors, PREFIX, reading.expert_packing)
    found = _sort_keys(files, _endings(str(files.config["peft_type"])))
    deltas, errors = _deltas(files, found, names)
    try:
        found.replaced += _token_rows(files, found.tokens)
    except AdaptoolError as error:
        errors.append(error)
    if errors:
        raise gathered([_placed(error, files) for error in errors])
    dropped = [ref for ref in found.leftover if _matches(ref.name, reading.allow_drop)]
    adapter = Adapter(
        name=files.name,
        layout="peft",
        config=files.config,
        deltas=deltas,
        replaced=tuple(found.replaced),
        leftover=tuple(ref for ref in found.leftover if ref not in dropped),
        dropped=tuple(ref.name for ref in (*dropped, *found.unused)),
        tensors=files.tensors,
        findings=(*findings, *names.findings(), *_unused_notes(found.unused)),
        base=_text(files.config.get("base_model_name_or_path")),
        layer_replication=_replication(files.config),
        keeps_ties=bool(files.config.get("ensure_weight_tying")),
        fan_in_fan_out=files.config.get("fan_in_fan_out"),
        changed_base=_changed_base(files.config),
    )
    return review(adapter, files)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _placed(error: AdaptoolError, files: AdapterFiles) -> AdaptoolError:
    if error.file is None:
        error.file = files.source.name
    return error


def _refuse_unsupported(files: AdapterFiles) -> None:
    """Tuners and switches whose merge is not plain addition and not known here."""
    config = files.config or {}
    kind = config.get("peft_type")
    if not any(tuner.DECLARATION.peft_type == kind for tuner in tuners().values()):
        message = f"{kind} adapters are not supported yet"
        raise MismatchError(
            message, code=Code.TUNER_UNSUPPORTED, file=files.config_file, field="peft_type"
        )
    for switch, why in _UNSUPPORTED_SWITCHES.items():
        if config.get(switch):
            raise MismatchError(
                why, code=Code.TUNER_UNSUPPORTED, file=files.config_file, field=switch
            )


# Initialisations that changed the base's weights before training began.
_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")


def _changed_base(config: Mapping[str, Any]) -> str | None:
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGING_INITS):
        return init.lower()
    return None


_UNSUPPORTED_SWITCHES = {
    "kasa_config": "KaSA truncates the base before it adds the delta; not supported yet",
    "use_qalora": "QALoRA belongs to a GPTQ base; it cannot be merged",
    "alora_invocation_tokens": "an activated LoRA acts on some tokens only; no weight can hold it",
    "arrow_config": "Arrow routes tokens between adapters; no weight can hold it",
    "velora_config": "VeLoRA is not supported yet",
    "monteclora_config": "MonteCLoRA is not supported yet",
}


def _endings(peft_type: str) -> dict[str, str]:
    """Every key ending of this PEFT type (and of type-less tuners): ending -> role."""
    endings: dict[str, str] = {}
    for tuner in tuners().values():
        if tuner.DECLARATION.peft_type in (peft_type, ""):
            endings.update(tuner.DECLARATION.keys)
    return endings


def _sort_keys(files: AdapterFiles, endings: Mapping[str, str]) -> _Sorted:
    found = _Sorted()
    seen: dict[str, str] = {}
    for key, ref in files.tensors.items():
        if not key.startswith(PREFIX):
            found.leftover.append(ref)
            continue
        rest = _NAMED.sub(r".\1", "." + key.removeprefix(PREFIX))[1:]
        if rest in seen:
            message = f"names the same place as {seen[rest]!r}"
            raise InputError(
                message, code=Code.SLOT_TAKEN_TWICE, file=files.source.name, tensor=key
            )
        seen[rest] = key
        _sort_key(found, rest, ref, endings)
    return found


def _sort_key(found: _Sorted, rest: str, ref: TensorRef, endings: Mapping[str, str]) -> None:
    for rows in TOKEN_ROWS:
        if rest.endswith("." + rows):
            found.tokens[rest.removesuffix("." + rows)] = ref
            return
    if ORIGINAL in rest:
        found.unused.append(ref)
        return
    module, ending = _split(rest, endings)
    if ending == "lora_B.bias":
        found.shifts[module] = ref
    elif ending is not None:
        found.roles.setdefault(module, {})[endings[ending]] = ref
    elif any(_TUNER_WORDS.match(part) for part in rest.split(".")):
        found.leftover.append(ref)
    else:
        found.replaced.append(_replaced(rest, ref))


def _unused_notes(unused: list[TensorRef]) -> tuple[Finding, ...]:
    """One note for all copies of modules that were replaced."""
    if not unused:
        return ()
    message = f"{len(unused)} copies of the base's modules beside the trained ones; not used"
    return (Finding(Code.TENSOR_UNUSED, Severity.NOTE, message, tensor=unused[0].name),)


def _split(rest: str, endings: Mapping[str, str]) -> tuple[str, str | None]:
    """`a.b.lora_A.weight` -> (`a.b`, `lora_A.weight`); ending None where none is known."""
    parts = rest.rsplit(".", 2)
    for count in (2, 1):
        if len(parts) > count:
            ending = ".".join(parts[-count:])
            if ending in endings:
                return rest.removesuffix("." + ending), ending
    return rest, None


def _replaced(rest: str, ref: TensorRef) -> Replaced:
    plain = rest.replace(".base_layer.", ".")
    saved = _SAVED.sub("", plain)
    return Replaced(saved, ref, copied_base=".base_layer." in rest, saved_module=saved != plain)


def _deltas(
    files: AdapterFiles, found: _Sorted, names: ModuleNames
) -> tuple[tuple[Delta, ...], list[AdaptoolError]]:
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    config = files.config or {}
    for module, roles in found.roles.items():
        try:
            deltas += _module_deltas(config, module, roles, found.shifts.get(module), names)
        except AdaptoolError as error:
            errors.append(error)
    for module in sorted(set(found.shifts) - set(found.roles)):
        message = "lora_B.bias has no lora_A and lora_B beside it"
        errors.append(InputError(message, code=Code.FACTOR_MISSING, tensor=module))
    return tuple(deltas), errors


def _module_deltas(
    config: Mapping[str, Any],
    module: str,
    roles: Mapping[str, TensorRef],
    shift: TensorRef | None,
    names: ModuleNames,
) -> list[Delta]:
    for ref in roles.values():
        _check_factor(ref)
    name, tuner = _tuner_of(config, module, roles)
    parameter = names.parameter(module)
    lookup = parameter if names.is_parameter(module) else parameter.removesuffix(".weight")
    shapes = {role: ref.shape for role, ref in roles.items()}
    terms = names.adjusted(module, tuner.terms(config, lookup, shapes))
    deltas = [Delta(module, parameter, name, roles, terms)]
    if shift is not None:
        _check_factor(shift)
        plain = tuners()["shift"].terms(config, lookup, {"difference": shift.shape})
        bias = parameter.removesuffix("weight") + "bias"
        scaled = names.scaled(plain, terms.scaling)
        deltas.append(Delta(module, bias, "shift", {"difference": shift}, scaled))
    return deltas


def _check_factor(ref: TensorRef) -> None:
    if not ref.dtype.floating:
        message = f"dtype {ref.dtype.name} is no floating-point number"
        raise InputError(message, code=Code.DTYPE_NOT_FLOAT, tensor=ref.name)
    if not ref.elements:
        message = f"shape {list(ref.shape)} holds no element"
        raise InputError(message, code=Code.ZERO_SIZE, tensor=ref.name)


def _tuner_of(
    config: Mapping[str, Any], module: str, roles: Mapping[str, TensorRef]
) -> tuple[str, Tuner]:
    """The tuner that knows every role here and needs most of them."""
    peft_type, present = str(config["peft_type"]), set(roles)
    init = _changed_base(config)
    special = {tuner.DECLARATION.init for tuner in tuners().values()}
    wanted = init if init in special else ""
    fitting = [
        (len(tuner.DECLARATION.required), name)
        for name, tuner in tuners().items()
        if tuner.DECLARATION.peft_type == peft_type
        and tuner.DECLARATION.init == wanted
        and tuner.DECLARATION.required <= present <= set(tuner.DECLARATION.keys.values())
    ]
    if not fitting:
        message = f"no {peft_type} tuner knows the tensors {sorted(present)} together"
        raise InputError(message, code=Code.KEYS_UNRECOGNISED, tensor=module)
    name = max(fitting)[1]
    return name, tuners()[name]


def _token_rows(files: AdapterFiles, tokens: Mapping[str, TensorRef]) -> list[Replaced]:
    """Trained token rows: row k of the tensor replaces row indices[k] of the embedding."""
    config = files.config or {}
    indices = config.get("trainable_token_indices")
    found = []
    for module, ref in tokens.items():
        rows = _indices_of(indices, module)
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


def _replication(config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((first, last) for first, last in config.get("layer_replication") or ())
