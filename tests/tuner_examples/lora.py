"""LoRA, whose every switch stands in `golden_cases`."""

from __future__ import annotations

from tuner_cases import Example

PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
EXAMPLES = (
    Example("llama", PLAIN),
    Example("gpt2", {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn"]}),
    Example("llama", {**PLAIN, "init_lora_weights": "mica"}, "MiCA", keep=("lora_B",), loose=True),
    Example(
        "convnet",
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed", "out"], "init_lora_weights": "mica"},
        "MiCA",
        keep=("lora_B", "lora_embedding_B"),
        loose=True,
    ),
)
