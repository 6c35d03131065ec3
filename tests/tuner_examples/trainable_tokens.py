"""Trained token rows: of an embedding, of the output layer, of both where they are tied."""

from __future__ import annotations

from tuner_cases import Example

TOKENS = {"token_indices": [7, 3, 60]}
EXAMPLES = (
    Example("llama", TOKENS),
    Example("llama", {**TOKENS, "target_modules": ["embed_tokens", "lm_head"]}, "both"),
    Example("llama_tied", TOKENS, "tied"),
    Example("gpt2", {**TOKENS, "target_modules": ["wte"]}, "tied"),
    Example("gpt_neox", {**TOKENS, "target_modules": ["embed_in"], "init_weights": False}),
)
