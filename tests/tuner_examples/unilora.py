"""Uni-LoRA with its indices saved; without them it is refused (tests/golden/tuners)."""

from __future__ import annotations

from tuner_cases import Example

OPTIONS = {"r": 4, "theta_d_length": 100, "save_indices": True}
EXAMPLES = (
    Example("llama", {**OPTIONS, "target_modules": ["q_proj", "down_proj"]}, loose=True),
    Example("gpt2", {**OPTIONS, "r": 2, "target_modules": ["c_attn", "c_proj"]}, loose=True),
)
