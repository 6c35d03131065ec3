"""PVeRA: projections stored, and drawn again; sampling asked for, which no merge can hold."""

from __future__ import annotations

from tuner_cases import Example

MIXED = ["q_proj", "v_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {"r": 6, "target_modules": MIXED, "sample_at_inference": False}),
    Example("llama", {"r": 6, "target_modules": MIXED, "save_projection": False}, "drawn"),
    Example(
        "gpt2",
        {"r": 4, "target_modules": ["c_attn", "c_proj"], "save_projection": False},
        "drawn",
    ),
    Example(
        "bert",
        {"r": 4, "target_modules": ["query", "dense"], "sample_at_inference": True},
        "sampling",
    ),
)
