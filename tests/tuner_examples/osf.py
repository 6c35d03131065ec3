"""OSF: half of the components, other shares of them, none, tall and wide and square weights."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"target_modules": ["q_proj", "up_proj", "down_proj"]}
FEW = {"effective_rank": 0.7, "rank_pattern": {"q_proj": 29, "layers.1.mlp.up": 1.0}}
EXAMPLES = (
    Example("llama", LLAMA, loose=True),
    Example("llama", {**LLAMA, **FEW}, "few, none", loose=True),
    Example(
        "bert", {"effective_rank": 3, "target_modules": ["query", "dense"]}, "most", loose=True
    ),
    Example("phi3", {"target_modules": ["qkv_proj"]}, "fused", loose=True),
)
