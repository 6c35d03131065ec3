"""The config of several adapters as one: what they share, and everything they target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter
from adaptool.names.selection import FIELDS, Selection
from adaptool.ops.low_rank import lora_config


def combined_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The first adapter's fields as a plain LoRA's, with what all adapters select.

    Only what the result does not decide is taken over; the encoder derives the rest from it.
    """
    configs = [adapter.config for adapter in adapters]
    base = lora_config(configs[0])
    if not base:
        base = next((lora_config(config) for config in configs if config), {})
    if not base:
        return {}
    known = [config for config in configs if config.get("peft_type")]
    return {
        **base,
        **_targets(known),
        "modules_to_save": _union("modules_to_save", known),
        "target_parameters": _union("target_parameters", known),
        **_switches(configs),
        **_tying(adapters),
        "use_rslora": False,
    }


def _targets(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of them select; nothing where that has no common form, and names must be found.

    Names that select everything that ends with them are united. What limits them, or an
    expression, means something in its own config only.
    """
    fields = [{name: config.get(name) for name in FIELDS} for config in configs]
    if all(each == fields[0] for each in fields[1:]):
        return fields[0] if fields else {}
    selections = [Selection.of(config) for config in configs]
    nothing = dict.fromkeys(FIELDS)
    if any(each.is_limited or isinstance(each.targets, str) for each in selections):
        return nothing
    return {
        **nothing,
        "target_modules": sorted({name for each in selections for name in each.targets}),
    }


def _union(name: str, configs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    return sorted({item for config in configs for item in config.get(name) or ()}) or None


def _switches(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`fan_in_fan_out` where any has it; PEFT corrects it by the kind of each layer."""
    name = "fan_in_fan_out"
    given = [config[name] for config in configs if name in config]
    return {name: any(given)} if given else {}


# What PEFT ties to each other where it is asked to, by the last name of their modules.
_TIED = frozenset({"embed_tokens", "lm_head"})


def _tying(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """`ensure_weight_tying` of the adapters that touch an end of the model.

    MismatchError where they do not agree: one config says it for all that is in a file.
    """
    name = "ensure_weight_tying"
    if not any(adapter.config.get(name) for adapter in adapters):
        return {}
    touching = [adapter for adapter in adapters if _touches_ends(adapter)]
    said = {bool(adapter.config.get(name)) for adapter in touching}
    if len(said) > 1:
        message = "one adapter ties the embedding to the head, another does not"
        hint = "merge them one after the other: merge BASE A OUT --add B"
        raise MismatchError(
            message, code=Code.TIED_WEIGHTS, file=adapters[0].name, field=name, hint=hint
        )
    return {name: True in said}


def _touches_ends(adapter: Adapter) -> bool:
    names = [delta.parameter for delta in adapter.deltas]
    names += [item.parameter for item in adapter.replaced]
    return any(name.split(".")[-2:][0] in _TIED for name in names)


def config_notes(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    """A warning where the adapters name different bases."""
    bases = sorted({adapter.base for adapter in adapters if adapter.base})
    if len(bases) > 1:
        message = f"trained on different bases by name: {', '.join(bases)}"
        hint = "the sum means something only on one base; the shapes fit"
        yield Finding(
            Code.BASES_DIFFER,
            Severity.WARNING,
            message,
            field="base_model_name_or_path",
            hint=hint,
        )
