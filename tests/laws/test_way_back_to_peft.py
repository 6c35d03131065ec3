"""What left PEFT's layout comes back to it as modules that PEFT finds; PEFT is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import adaptool
from peft_judge import furthest, load, save_base, trained, under, weights

ROUNDING = 2e-5
BOTH = ("experts.gate_up_proj", "experts.down_proj")
TEXT = ".*language_model.*(q_proj|down_proj)"


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "layout", "options"),
    [
        ("mixtral", "mlx", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
        ("granitemoe", "mlx", {"target_modules": [], "target_parameters": BOTH}),
        ("llava", "mlx", {"target_modules": TEXT}),
        ("gemma3", "gguf", {"target_modules": ["embed_tokens"]}),
        _slow("qwen2_moe", "mlx", {"target_modules": [], "target_parameters": BOTH[:1]}),
        _slow("jamba", "mlx", {"target_modules": [], "target_parameters": BOTH}),
        _slow("llama4_text", "mlx", {"target_modules": [], "target_parameters": BOTH}),
        _slow("qwen3_vl_moe", "mlx", {"target_modules": [], "target_parameters": BOTH}),
        _slow("phimoe", "mlx", {"target_modules": [], "target_parameters": BOTH}),
        _slow("qwen3_moe", "gguf", {"target_modules": [], "target_parameters": BOTH}),
        _slow("qwen3_vl", "gguf", {"target_modules": TEXT}),
        _slow("gpt2", "mlx", {"target_modules": ["wpe", "wte"]}),
        _slow("bloom", "gguf", {"target_modules": ["query_key_value", "word_embeddings"]}),
    ],
)
def test_peft_applies_what_came_back_as_what_it_saved(
    family: str, layout: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """With the base's names at hand, there and back."""
    base = save_base(family, tmp_path / "base")
    config = LoraConfig(
        r=3,
        lora_alpha=8,
        **{
            key: list(value) if isinstance(value, tuple) else value
            for key, value in options.items()
        },
    )
    adapter = trained(family, base, tmp_path / "adapter", config)
    there = tmp_path / ("x.gguf" if layout == "gguf" else "x")
    adaptool.convert(adapter, there, to=layout, base=base)
    adaptool.convert(there, tmp_path / "back", to="peft", base=base)
    wanted = under(family, base, adapter)
    found = under(family, base, tmp_path / "back", whole=False)
    assert furthest(found, wanted, weights(load(family, base))) < ROUNDING
