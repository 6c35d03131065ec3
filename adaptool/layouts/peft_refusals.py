"""PEFT adapters that no weight can hold, or whose files lack what a merge would need.

Source: PEFT 0.21.2; prompt methods write keys of their own, all others keys below `base_model.`.
"""

from __future__ import annotations

from types import MappingProxyType

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.peft_config import NOT_MERGEABLE
from adaptool.store.adapter_files import AdapterFiles
from adaptool.tuners import tuners

# Where an X-LoRA saves its adapters. PEFT tells them apart by a number anywhere in a tensor's name,
# so it leaves out whole layers, and keeps what the base has.
_MIXED = "base_model.lora_model."
_SWITCHES = MappingProxyType(
    {
        "use_qalora": "QALoRA belongs to a GPTQ base; it cannot be merged",
        "alora_invocation_tokens": (
            "an activated LoRA acts on some tokens only; no weight can hold it"
        ),
        "arrow_config": (
            "Arrow routes tokens between adapters; no weight can hold it, but each of its task_N "
            "adapters can be merged"
        ),
    }
)
"""Fields of a LoRA's config that make it another thing, and why that cannot be merged."""


def is_unmergeable(files: AdapterFiles) -> bool:
    """Whether the config names a method of PEFT's that no weight can hold, whatever its keys."""
    return str((files.config or {}).get("peft_type")) in NOT_MERGEABLE


def refuse_unsupported(files: AdapterFiles) -> None:
    """MismatchError for a tuner or a switch that cannot be merged, or is not known here."""
    config = files.config or {}
    kind = str(config.get("peft_type"))
    if not any(tuner.DECLARATION.serves(kind) for tuner in tuners().values()):
        raise _refused(files, f"{kind} adapters are not supported yet", "peft_type")
    for switch, why in _SWITCHES.items():
        if config.get(switch):
            raise _refused(files, why, switch)
    if any(name.startswith(_MIXED) for name in files.tensors):
        message = (
            "X-LoRA saved it with tensors of the base, and without every layer that has the number "
            "of another of its adapters"
        )
        hint = "merge the LoRA adapters that the X-LoRA was made from"
        raise _refused(files, message, None, hint)
    if kind == "UNILORA" and not any(".unilora_indices_" in name for name in files.tensors):
        message = (
            "which numbers each layer takes is not in the file; they follow from the order in "
            "which the model's code defines its layers"
        )
        hint = "load the adapter with PEFT and save it with save_indices=True"
        raise _refused(files, message, "save_indices", hint)


def _refused(
    files: AdapterFiles, why: str, field: str | None, hint: str | None = None
) -> MismatchError:
    file = files.config_file if field is not None else files.source.name
    return MismatchError(why, code=Code.TUNER_UNSUPPORTED, file=file, field=field, hint=hint)
