"""adapter_config.json: every field's type, before any of them is believed.

Source: `LoraConfig` and `PeftType` of PEFT 0.21.2. Unknown keys are kept and reported.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from adaptool.errors import AdaptoolError, InputError, MismatchError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.names.patterns import check_expression, check_keys

PEFT_TYPES = frozenset(
    [
        "PROMPT_TUNING",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "LORA",
        "ADALORA",
        "ADAMSS",
        "BOFT",
        "ADAPTION_PROMPT",
        "IA3",
        "BEFT",
        "LILY",
        "LOHA",
        "LOKR",
        "OFT",
        "POLY",
        "LN_TUNING",
        "VERA",
        "FROD",
        "PVERA",
        "FOURIERFT",
        "GLORA",
        "XLORA",
        "HRA",
        "VBLORA",
        "UNILORA",
        "CPT",
        "MISS",
        "BONE",
        "RANDLORA",
        "ROAD",
        "TRAINABLE_TOKENS",
        "HIRA",
        "SHIRA",
        "C3A",
        "WAVEFT",
        "OSF",
        "DELORA",
        "GRALORA",
        "CARTRIDGE",
        "TINYLORA",
        "PSOFT",
        "PEANUT",
        "SHADOW",
        "SUPERTUNING",
        "DEFT",
    ]
)
NOT_MERGEABLE = {
    "PROMPT_TUNING": "it learns a prompt, not weights",
    "MULTITASK_PROMPT_TUNING": "it learns a prompt, not weights",
    "P_TUNING": "it learns a prompt, not weights",
    "PREFIX_TUNING": "it learns a prefix of keys and values, not weights",
    "CPT": "it learns a prompt, not weights",
    "CARTRIDGE": "it learns a cache of keys and values, not weights",
    "ADAPTION_PROMPT": "it adds gated attention, which no weight can hold",
    "POLY": "its weights depend on the task id",
    "XLORA": "a classifier mixes adapters per token; the LoRA adapters it mixes can be merged",
    "LILY": "its update depends on the input",
    "SHADOW": "its update depends on the input",
    "ADAMSS": "which rows it changes is not in its file",
}
KNOWN_FIELDS = frozenset(
    [
        "alora_invocation_tokens",
        "alpha_pattern",
        "arrow_config",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_B_layout",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "monteclora_config",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "use_rslora",
        "velora_config",
        "enable_lora",
        "merge_weights",
        "lora_ga_config",
        "use_alora",
    ]
)
_BOOLEANS = (
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "use_qalora",
    "ensure_weight_tying",
    "inference_mode",
)
_LISTS = ("modules_to_save", "target_parameters")
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save")
# A part of dots alone is a folder, not a name.
_REPO_NAME = re.compile(r"(?!\.+(/|$))[\w.-]+(/(?!\.+$)[\w.-]+)?")
MOST_NAMED = 100_000

Check = Callable[[Mapping[str, Any]], None]


def check_config(config: Mapping[str, Any], file: str) -> tuple[Finding, ...]:
    """Refuse what PEFT's fields cannot hold; returns what is worth a word.

    InputError (exit 3) for a wrong field, carrying every other wrong field; MismatchError (4) for
    a tuner that no weight can hold, or an alpha of 0.
    """
    errors: list[AdaptoolError] = []
    for check in (_peft_type, _rank, _alpha, _booleans, _targets, _layers, _tables, _others):
        try:
            check(config)
        except AdaptoolError as error:
            error.file = file
            errors.append(error)
    if errors:
        raise gathered(errors)
    return tuple(_notes(config, file))


def _refuse(field: str, value: object, wanted: str, hint: str | None = None) -> InputError:
    kind = type(value).__name__
    shown = repr(value) if len(repr(value)) < 60 else f"a {kind} of {len(repr(value))} characters"
    message = f"is {shown} ({kind}), must be {wanted}"
    return InputError(message, code=Code.FIELD_TYPE, field=field, hint=hint)


def _peft_type(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind is None:
        message = f"missing; PEFT writes one of {len(PEFT_TYPES)} types, such as LORA"
        raise InputError(message, code=Code.FIELD_MISSING, field="peft_type")
    if not isinstance(kind, str):
        raise _refuse("peft_type", kind, "a string such as LORA")
    if kind in NOT_MERGEABLE:
        message = f"{kind} cannot be merged: {NOT_MERGEABLE[kind]}"
        raise MismatchError(message, code=Code.TUNER_NOT_MERGEABLE, field="peft_type")
    if kind not in PEFT_TYPES:
        near = difflib.get_close_matches(kind.upper(), sorted(PEFT_TYPES), n=1)
        hint = f"did you mean {near[0]}?" if near else "is the file from a newer PEFT?"
        message = f"{kind!r} is no tuner that PEFT knows"
        raise InputError(message, code=Code.PEFT_TYPE_UNKNOWN, field="peft_type", hint=hint)


def _rank(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        return
    if "r" not in config:
        message = "missing, so the scale alpha / r is unknown"
        hint = "state it; PEFT would silently take 8"
        raise InputError(message, code=Code.FIELD_MISSING, field="r", hint=hint)
    _whole(config["r"], "r")


def _whole(value: object, field: str) -> None:
    if type(value) is not int:
        raise _refuse(field, value, "a whole number")
    if value < 1:
        message = f"is {value}, must be at least 1"
        raise InputError(message, code=Code.FIELD_VALUE, field=field)


def _alpha(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        return
    if "lora_alpha" not in config:
        message = "missing, so the scale alpha / r is unknown"
        hint = "state it; PEFT would silently take 8"
        raise InputError(message, code=Code.FIELD_MISSING, field="lora_alpha", hint=hint)
    _number(config["lora_alpha"], "lora_alpha")
    if config["lora_alpha"] == 0 and not _changes_otherwise(config):
        message = "is 0: the adapter changes nothing"
        hint = "state the alpha it was trained with"
        raise MismatchError(message, code=Code.ALPHA_ZERO, field="lora_alpha", hint=hint)


def _changes_otherwise(config: Mapping[str, Any]) -> bool:
    """Whether an adapter whose lora_alpha is 0 may change the model all the same."""
    fields = ("alpha_pattern", "modules_to_save", "trainable_token_indices")
    return any(map(config.get, fields)) or config.get("bias", "none") != "none"


def _number(value: object, field: str) -> None:
    if type(value) not in (int, float):
        raise _refuse(field, value, "a number")
    try:
        finite = math.isfinite(float(value))  # type: ignore[arg-type]
    except OverflowError:
        finite = False
    if not finite:
        message = f"is {value}, must be finite"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, field=field)


def _booleans(config: Mapping[str, Any]) -> None:
    for field in _BOOLEANS:
        value = config.get(field)
        if value is not None and type(value) is not bool:
            raise _refuse(field, value, "true or false", "PEFT would take any text for true")


def _targets(config: Mapping[str, Any]) -> None:
    for field in _PATTERNS:
        value = config.get(field)
        if isinstance(value, str):
            check_expression(value, field=field)
        elif value is not None:
            _names(value, field)
    for field in _LISTS:
        if isinstance(config.get(field), str):
            raise _refuse(field, config[field], "a list of names")
    if config.get("target_parameters") is not None:
        _names(config["target_parameters"], "target_parameters")
    # PEFT resolves null before it saves, unless parameters are targeted instead.
    unresolved = "target_modules" in config and config["target_modules"] is None
    if unresolved and config.get("peft_type") == "LORA" and not config.get("target_parameters"):
        raise _refuse("target_modules", None, "a string or a list of strings")
    # PEFT puts these into an expression, so they must be safe as one.
    for field in ("modules_to_save", "layers_pattern"):
        for name in config.get(field) or ():
            check_expression(name, field=field)


def _layers(config: Mapping[str, Any]) -> None:
    layers = config.get("layers_to_transform")
    listed = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(index) is int for index in listed):
        raise _refuse("layers_to_transform", layers, "a layer's number or a list of them")


def _names(value: object, field: str) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _refuse(field, value, "a string or a list of strings")
    if len(value) > MOST_NAMED:
        message = f"{len(value)} names; at most {MOST_NAMED} are read"
        raise InputError(message, code=Code.LIMIT_EXCEEDED, field=field)


def _tables(config: Mapping[str, Any]) -> None:
    for field, check in (("rank_pattern", _whole), ("alpha_pattern", _number)):
        table = config.get(field)
        if table is None:
            continue
        if not isinstance(table, Mapping):
            raise _refuse(field, table, "an object of pattern and number")
        check_keys(table, field=field)
        for key, value in table.items():
            if config.get("peft_type") == "LORA":
                check(value, f"{field}[{key!r}]")


def _others(config: Mapping[str, Any]) -> None:
    task = config.get("task_type")
    if task is not None and not isinstance(task, str):
        raise _refuse("task_type", task, "a string such as CAUSAL_LM, or null")
    bias = config.get("bias", "none")
    if config.get("peft_type") == "LORA" and bias not in ("none", "all", "lora_only"):
        raise _refuse("bias", bias, "none, all or lora_only")
    replication = config.get("layer_replication")
    if replication is not None and not _is_ranges(replication):
        raise _refuse("layer_replication", replication, "a list of [first, last) pairs")
    packing = config.get("lora_B_layout")
    if packing not in (None, "rank_major", "grouped_by_expert"):
        raise _refuse("lora_B_layout", packing, "rank_major or grouped_by_expert")
    indices = config.get("trainable_token_indices")
    lists = indices.values() if isinstance(indices, Mapping) else [indices]
    if indices is not None and not all(_is_indices(entry) for entry in lists):
        wanted = "a list of token indices, or one per module"
        raise _refuse("trainable_token_indices", indices, wanted)


def _is_ranges(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(end) is int for end in pair)
        and 0 <= pair[0] < pair[1]
        for pair in value
    )


def _is_indices(value: object) -> bool:
    return isinstance(value, list) and all(type(index) is int and index >= 0 for index in value)


def _notes(config: Mapping[str, Any], file: str) -> list[Finding]:
    notes = [
        Finding(
            Code.FIELD_UNKNOWN,
            Severity.WARNING,
            "PEFT 0.21 knows no such field; it is kept, and has no effect here",
            file=file,
            field=name,
        )
        for name in sorted(set(config) - KNOWN_FIELDS)
        if config.get("peft_type") == "LORA"
    ]
    alpha = config.get("lora_alpha")
    if config.get("peft_type") == "LORA" and isinstance(alpha, int | float) and alpha < 0:
        text = f"is {alpha}: the adapter's effect is subtracted"
        code = Code.ALPHA_NEGATIVE
        notes.append(Finding(code, Severity.WARNING, text, file=file, field="lora_alpha"))
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and base and not _REPO_NAME.fullmatch(base):
        text = "is a path or an address, not a repository; it is never opened"
        code = Code.BASE_REFERENCE_UNSAFE
        notes.append(Finding(code, Severity.NOTE, text, file=file, field="base_model_name_or_path"))
    return notes
