"""PiSSA: what training took out of the base is taken out again."""

from __future__ import annotations

from tuner_cases import Example

OPTIONS = {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}
EXAMPLES = (
    Example("llama", {**OPTIONS, "target_modules": ["q_proj", "down_proj"]}, loose=True),
    Example("phi3", {**OPTIONS, "target_modules": ["qkv_proj"]}, loose=True),
)
