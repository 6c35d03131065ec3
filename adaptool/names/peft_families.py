"""Families whose linear modules PEFT takes for experts, by their last names.

PEFT turns targets that transformers 4 had as modules of each expert into the parameters that
transformers 5 stacks them in, wherever a target has such a last name: of a shared expert or a
dense layer too. There the weight can be targeted by its own name only.
Source: PEFT 0.21.2, peft/utils/transformers_weight_conversion.py (the tests ask it).
"""

from __future__ import annotations

from collections.abc import Sequence

_MIXTRAL = frozenset({"gate", "w1", "w2", "w3"})
_QWEN2_MOE = frozenset({"gate", "gate_proj", "up_proj", "down_proj"})
TAKEN = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), _MIXTRAL),
    **dict.fromkeys(
        (
            *("afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32"),
            *("dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite"),
            *("glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "olmoe"),
            *("qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text"),
            *("qwen3_omni_moe_thinker", "solar_open"),
        ),
        _QWEN2_MOE,
    ),
}
"""By `model_type`: the last names."""


def is_taken(model_types: Sequence[str], module: str) -> bool:
    """Whether PEFT would take a target of this name for one of the experts'."""
    return module.rpartition(".")[2] in TAKEN.get(model_types[0] if model_types else "", ())
