"""VeLoRA: the stored projection has no effect, with and without rsLoRA."""

from __future__ import annotations

from peft import VeloraConfig

from tuner_cases import Example

OPTIONS = {"r": 4, "lora_alpha": 6, "velora_config": VeloraConfig(num_groups=8, init_type="random")}
EXAMPLES = (
    Example("llama", {**OPTIONS, "target_modules": ["q_proj", "down_proj"]}),
    Example("bert", {**OPTIONS, "use_rslora": True, "target_modules": ["query"]}, "rsLoRA"),
)
