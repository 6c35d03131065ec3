"""LN tuning: norms with a bias and without, other layers."""

from __future__ import annotations

from tuner_cases import Example

EXAMPLES = (
    Example("llama", {"target_modules": ["input_layernorm", "norm"]}),
    Example("gpt2", {"target_modules": ["ln_1", "ln_f"]}),
    Example("bert", {"target_modules": ["LayerNorm", "query"]}, "linear layers too"),
)
