"""FRoD: rotations many and none, Conv1D, categories of one layer, wide weights."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"target_modules": ["q_proj", "up_proj", "down_proj"], "progressbar": False}
GPT2 = {"target_modules": ["c_attn", "c_proj"], "progressbar": False}
EXAMPLES = (
    Example("llama", LLAMA, loose=True),
    Example("llama", {**LLAMA, "sparse_rate": 0.3, "projection_prng_key": 4}, "dense", loose=True),
    Example("llama", {**LLAMA, "sparse_rate": 0.0}, "scales alone", loose=True),
    Example("gpt2", {**GPT2, "sparse_rate": 0.1}, loose=True),
    Example("convnet", {"target_modules": ["out"], "progressbar": False}, "one wide", loose=True),
    Example("bert", {"target_modules": ["dense"], "progressbar": False}, loose=True),
)
