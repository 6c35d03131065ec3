"""GraLoRA: grids of two and four, with a plain product beside them, on Conv1D."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"r": 8, "alpha": 6, "target_modules": ["q_proj", "down_proj"]}
EXAMPLES = (
    Example("llama", {**LLAMA, "gralora_k": 2}, "two"),
    Example("llama", {**LLAMA, "gralora_k": 4, "hybrid_r": 3}, "four, hybrid"),
    Example("gpt2", {"r": 4, "gralora_k": 2, "hybrid_r": 2, "target_modules": ["c_attn"]}),
)
