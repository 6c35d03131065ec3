"""MiSS where what is added depends on W; files named Bone."""

from __future__ import annotations

from tuner_cases import Example
from tuner_examples.miss import to_bone

BAT = {"r": 4, "init_weights": "bat"}
LINEARS = ["q_proj", "k_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {**BAT, "target_modules": LINEARS}, peft_type="MISS"),
    Example("bert", {**BAT, "target_modules": ["query", "dense"]}, peft_type="MISS"),
    Example(
        "llama",
        {**BAT, "target_modules": LINEARS},
        "bone",
        edit=to_bone,
        older=True,
        peft_type="MISS",
    ),
)
