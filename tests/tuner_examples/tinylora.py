"""TinyLoRA: a vector for each module, shared ones, one for all; embeddings, Conv1D."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"r": 3, "u": 5, "target_modules": ["q_proj", "k_proj", "down_proj", "embed_tokens"]}
EXAMPLES = (
    Example("llama", LLAMA),
    Example("llama", {**LLAMA, "weight_tying": 0.5}, "tied by half"),
    Example("llama", {**LLAMA, "weight_tying": 0.8, "projection_seed": 7}, "mostly tied"),
    Example("llama", {**LLAMA, "weight_tying": 1.0}, "one vector"),
    Example("gpt2", {"r": 2, "u": 70, "target_modules": ["c_attn", "c_proj"]}),
    Example("convnet", {"r": 6, "u": 1, "target_modules": ["square", "out"]}, "capped rank"),
)
