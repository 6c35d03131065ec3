"""PEANuT: depths, activations (all of them: tests/unit/tuners), a scale, a fused projection."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"r": 4, "target_modules": ["q_proj", "up_proj", "down_proj"]}
EXAMPLES = (
    Example("llama", LLAMA),
    Example("llama", {**LLAMA, "depth": 1, "act_fn": "silu", "scaling": -0.5}, "one"),
    Example("llama", {**LLAMA, "depth": 3, "act_fn": "tanh", "scaling": 2.0}, "three"),
    Example("bert", {"r": 5, "depth": 2, "target_modules": ["query", "dense"], "act_fn": "mish"}),
    Example("phi3", {"r": 5, "depth": 1, "target_modules": ["qkv_proj"]}, "fused"),
)
