"""A plain difference, as LoRA writes one for a bias."""

from __future__ import annotations

from tuner_cases import Example

OPTIONS = {"r": 4, "lora_alpha": 6, "lora_bias": True}
EXAMPLES = (
    Example("opt", {**OPTIONS, "target_modules": ["q_proj", "fc1"]}, peft_type="LORA"),
    Example("gpt2", {**OPTIONS, "target_modules": ["c_attn"]}, peft_type="LORA"),
)
