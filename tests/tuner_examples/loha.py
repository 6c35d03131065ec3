"""LoHa: linear, convolutions flattened and effective, patterns of rank and alpha."""

from __future__ import annotations

from tuner_cases import Example

PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 5}}
EXAMPLES = (
    Example("llama", {"r": 3, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}),
    Example(
        "llama",
        {"r": 3, "alpha": 4, "target_modules": ["q_proj", "up_proj"], **PATTERNS},
        "patterns",
    ),
    Example("phi3", {"r": 2, "alpha": 8, "target_modules": ["qkv_proj"]}, "fused"),
    Example("bert", {"r": 2, "alpha": 8, "target_modules": ["query", "dense"]}),
    Example(
        "convnet",
        {"r": 2, "alpha": 3, "target_modules": ["conv1", "conv2", "pointwise", "grouped", "out"]},
    ),
    Example(
        "convnet",
        {
            "r": 2,
            "alpha": 3,
            "target_modules": ["conv1", "conv2", "pointwise"],
            "use_effective_conv2d": True,
        },
        "effective",
    ),
)
