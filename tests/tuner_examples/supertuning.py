"""Super-Tuning: the largest elements, the smallest ones, with a LoRA beside them."""

from __future__ import annotations

from tuner_cases import Example

LINEARS = ["q_proj", "k_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {"target_modules": LINEARS}),
    Example("llama", {"target_modules": LINEARS, "r": 3}, "Supra"),
    Example(
        "llama",
        {"target_modules": LINEARS, "r": 4, "lora_alpha": 2, "select_top": False, "sparsity": 0.9},
        "Supra, smallest",
    ),
    Example("bert", {"target_modules": ["query", "dense"], "sparsity": 0.5}),
    Example("phi3", {"target_modules": ["qkv_proj"], "sparsity": 0.5, "r": 2}, "fused"),
)
