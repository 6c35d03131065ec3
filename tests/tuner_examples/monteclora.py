"""MonteCLoRA: the sampler's tensors have no effect, with and without patterns."""

from __future__ import annotations

from peft import MontecloraConfig

from tuner_cases import Example

OPTIONS = {
    "r": 4,
    "lora_alpha": 6,
    "monteclora_config": MontecloraConfig(num_samples=3, buffer_size=2),
}
EXAMPLES = (
    Example("llama", {**OPTIONS, "target_modules": ["q_proj", "down_proj"]}),
    Example(
        "bert",
        {**OPTIONS, "rank_pattern": {"query": 2}, "target_modules": ["query", "key"]},
        "patterns",
    ),
)
