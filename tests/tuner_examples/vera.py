"""VeRA: projections stored, and drawn again at the size of the largest layer."""

from __future__ import annotations

from tuner_cases import Example

MIXED = ["q_proj", "v_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {"r": 6, "target_modules": MIXED}),
    Example("llama", {"r": 6, "target_modules": MIXED, "save_projection": False}, "drawn"),
    Example(
        "gpt2",
        {"r": 4, "target_modules": ["c_attn", "c_proj"], "save_projection": False},
        "drawn",
    ),
    Example("phi3", {"r": 4, "target_modules": ["qkv_proj", "down_proj"]}, "fused"),
    Example("bert", {"r": 4, "target_modules": ["query", "dense"], "projection_prng_key": 9}),
)
