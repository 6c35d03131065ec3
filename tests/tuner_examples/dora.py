"""DoRA, whose every switch stands in `golden_cases`."""

from __future__ import annotations

from tuner_cases import Example

DORA = {"r": 4, "lora_alpha": 6, "use_dora": True}
EXAMPLES = (
    Example("llama", {**DORA, "target_modules": ["q_proj", "down_proj"]}, keep=("magnitude",)),
    Example("gpt2", {**DORA, "target_modules": ["c_attn"]}, keep=("magnitude",)),
)
