"""KaSA: tall, wide and square weights, a fused projection, rsLoRA."""

from __future__ import annotations

from peft import KasaConfig

from tuner_cases import Example

OPTIONS = {"r": 4, "lora_alpha": 6, "kasa_config": KasaConfig()}
EXAMPLES = (
    Example("llama", {**OPTIONS, "target_modules": ["q_proj", "up_proj", "down_proj"]}, loose=True),
    Example(
        "phi3",
        {**OPTIONS, "use_rslora": True, "target_modules": ["qkv_proj"]},
        "rsLoRA",
        loose=True,
    ),
)
