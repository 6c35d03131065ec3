"""WaveFT: numbers as they are and under the inverse transform, every kind of wavelet, Conv1D."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"n_frequency": 90, "scaling": 5.0, "target_modules": ["q_proj", "k_proj", "down_proj"]}
GPT2 = {"n_frequency": 200, "random_loc_seed": 3, "target_modules": ["c_attn", "c_proj"]}
FAMILIES = ("db2", "db5", "sym4", "sym9", "coif1", "coif4")
EXAMPLES = (
    Example("llama", LLAMA),
    Example("llama", {**LLAMA, "use_idwt": False}, "raw"),
    Example("llama", {**LLAMA, "proportional_parameters": True}, "proportional"),
    Example("llama", {**LLAMA, "n_frequency_pattern": {"q_proj": 7}}, "pattern"),
    Example("gpt2", {**GPT2, "wavelet_family": "db3"}, "db3"),
    Example("gpt2", {**GPT2, "use_idwt": False}, "raw"),
    Example("convnet", {"n_frequency": 20, "target_modules": ["out"], "wavelet_family": "sym3"}),
    *(Example("llama", {**LLAMA, "wavelet_family": name}, name) for name in FAMILIES),
)
