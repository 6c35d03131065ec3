"""DeLoRA: ranks by pattern, another lambda."""

from __future__ import annotations

from tuner_cases import Example

KEEP = ("delora_lambda",)
EXAMPLES = (
    Example("llama", {"r": 4, "target_modules": ["q_proj", "down_proj"]}, keep=KEEP),
    Example(
        "bert",
        {
            "r": 4,
            "delora_lambda": 3,
            "rank_pattern": {"query": 2},
            "lambda_pattern": {"query": 7.5},
            "target_modules": ["query", "dense"],
        },
        "patterns",
    ),
)
