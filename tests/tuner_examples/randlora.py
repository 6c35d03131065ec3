"""RandLoRA: projections stored and drawn again, dense, sparse and very sparse; Conv1D."""

from __future__ import annotations

from tuner_cases import Example

SIZES = {"r": 5, "randlora_alpha": 12}
LINEARS = ["q_proj", "k_proj", "up_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {**SIZES, "target_modules": LINEARS}),
    Example("llama", {**SIZES, "target_modules": LINEARS, "save_projection": False}, "drawn"),
    Example(
        "bert",
        {**SIZES, "target_modules": ["query", "dense"], "save_projection": False, "sparse": True}
        | {"projection_prng_key": 4},
        "drawn sparse",
    ),
    Example(
        "gpt2",
        {**SIZES, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
        | {"save_projection": False, "very_sparse": True},
        "drawn very sparse",
    ),
)
