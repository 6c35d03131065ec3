"""What becomes of each field of a PEFT config where an adapter is written.

Three fates: a field is derived from what the file holds, carried from the adapter that was read
with the reason why that stays true, or dropped with the reason why nothing is lost.
Source: the config classes of PEFT 0.21.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Fate(StrEnum):
    """What becomes of a field."""

    DERIVED = "derived"
    CARRIED = "carried"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Field:
    """A field's fate, and by what rule or why."""

    fate: Fate
    why: str


def _all(fate: Fate, why: str, *names: str) -> dict[str, Field]:
    return {name: Field(fate, why) for name in names}


LORA: Mapping[str, Field] = MappingProxyType(
    {
        **_all(
            Fate.DERIVED,
            "kept where the given fields select what the file holds, else written anew",
            "exclude_modules",
            "layers_pattern",
            "layers_to_transform",
            "modules_to_save",
            "target_modules",
            "target_parameters",
            "trainable_token_indices",
        ),
        **_all(
            Fate.DERIVED,
            "from the ranks and scales of the deltas",
            "alpha_pattern",
            "lora_alpha",
            "r",
            "rank_pattern",
        ),
        **_all(
            Fate.DERIVED,
            "from the kinds of the deltas: PEFT looks for what a switch asks for",
            "kasa_config",
            "lora_bias",
            "monteclora_config",
            "use_bdlora",
            "use_dora",
            "velora_config",
        ),
        **_all(Fate.DERIVED, "`none` where the file holds no bias", "bias"),
        **_all(
            Fate.DERIVED, "alphas are computed for it; off where combined or baked", "use_rslora"
        ),
        **_all(
            Fate.DERIVED,
            "off beside parameters that are targeted by name, where PEFT refuses them",
            "fan_in_fan_out",
            "lora_dropout",
        ),
        **_all(
            Fate.DERIVED,
            "`true` where new factors were made: they are no update of a changed base",
            "init_lora_weights",
        ),
        **_all(
            Fate.CARRIED,
            "names of the model and the run; nothing in the file contradicts them",
            "auto_mapping",
            "base_model_name_or_path",
            "inference_mode",
            "peft_type",
            "peft_version",
            "revision",
            "task_type",
        ),
        **_all(
            Fate.CARRIED,
            "of the model that is adapted, not of the factors; alike in all adapters of a sum",
            "ensure_weight_tying",
            "layer_replication",
        ),
        **_all(
            Fate.CARRIED,
            "decided how training began or ran; PEFT computes nothing from it with trained factors",
            "corda_config",
            "eva_config",
            "loftq_config",
            "lora_ga_config",
            "megatron_config",
            "megatron_core",
            "qalora_group_size",
        ),
        **_all(
            Fate.DROPPED,
            "adapters that have it set are refused as they are read: no weight can hold them",
            "alora_invocation_tokens",
            "arrow_config",
            "use_qalora",
        ),
        **_all(Fate.DROPPED, "PEFT never saves it", "runtime_config"),
    }
)
"""Every field of LoraConfig."""
