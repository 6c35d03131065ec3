"""GLoRA: every path as a product, a vector, a number and nothing, with biases and without."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"r": 3, "target_modules": ["q_proj", "down_proj"]}
OPT = {"r": 3, "target_modules": ["k_proj", "fc1"]}
EXAMPLES = (
    Example("llama", LLAMA, "products"),
    Example("llama", {**LLAMA, "config_A_B": "vector"}, "vectors"),
    Example("llama", {**LLAMA, "config_A_B": "constant"}, "numbers"),
    Example("opt", OPT, "products"),
    Example(
        "opt",
        {**OPT, "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
        "vectors",
    ),
    Example("opt", {**OPT, "config_A_B": "constant", "config_C": "none"}, "numbers"),
    Example("opt", {**OPT, "config_A_B": "none"}, "biases alone"),
    Example("opt", {**OPT, "config_D_E": "none"}, "bias from weight"),
    Example("bert", {**OPT, "target_modules": ["query"], "config_D_E": "vector"}, "mixed"),
)
