"""VB-LoRA: logits stored, or the largest shares alone; Conv1D."""

from __future__ import annotations

from tuner_cases import Example

BANK = {"r": 2, "num_vectors": 20, "vector_length": 8, "topk": 2}
LINEARS = ["q_proj", "k_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {**BANK, "target_modules": LINEARS}),
    Example(
        "llama",
        {**BANK, "topk": 3, "target_modules": LINEARS, "save_only_topk_weights": True},
        "shares",
    ),
    Example(
        "bert",
        {**BANK, "topk": 1, "target_modules": ["query"], "save_only_topk_weights": True},
        "one share",
    ),
    Example("gpt2", {**BANK, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
)
