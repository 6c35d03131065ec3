"""FourierFT: linear layers and Conv1D, other numbers of frequencies for some, another seed."""

from __future__ import annotations

from tuner_cases import Example

FEW = {"n_frequency": 20, "scaling": 150.0}
EXAMPLES = (
    Example("llama", {**FEW, "target_modules": ["q_proj", "k_proj", "down_proj"]}, loose=True),
    Example(
        "bert",
        {
            **FEW,
            "random_loc_seed": 3,
            "n_frequency_pattern": {"query": 50},
            "target_modules": ["query", "dense"],
        },
        "pattern",
        loose=True,
    ),
    Example(
        "gpt2",
        {"n_frequency": 100, "scaling": 80.0, "fan_in_fan_out": True}
        | {"target_modules": ["c_attn", "c_proj"]},
        loose=True,
    ),
)
