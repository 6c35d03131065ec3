"""The config of several adapters as one: what they share, and everything they target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter
from adaptool.ops.low_rank import lora_config

UNITED = ("modules_to_save", "target_modules", "target_parameters")


def combined_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The first adapter's fields as a plain LoRA's, the targets of all."""
    configs = [adapter.config for adapter in adapters]
    base = lora_config(configs[0])
    if not base:
        base = next((lora_config(config) for config in configs if config), {})
    if not base:
        return {}
    united = {name: _united(name, configs) for name in UNITED}
    found = {name: value for name, value in united.items() if value is not None}
    switches = {
        name: any(config.get(name) for config in configs)
        for name in ("lora_bias", "fan_in_fan_out")
        if any(name in config for config in configs)
    }
    saved = {name: None for name in ("modules_to_save",) if name not in found}
    return {**base, **saved, **found, **switches, "use_dora": False, "use_rslora": False}


def _united(name: str, configs: Sequence[Mapping[str, Any]]) -> object:
    """All names in the lists; one expression that all share; None where they cannot be united."""
    given = [config[name] for config in configs if config.get(name)]
    if all(isinstance(value, list | tuple | set) for value in given):
        return sorted({item for value in given for item in value}) or None
    return given[0] if all(value == given[0] for value in given) else None


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
