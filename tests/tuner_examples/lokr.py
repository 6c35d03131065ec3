"""LoKr: either factor whole or decomposed, factors asked for, convolutions of every kind."""

from __future__ import annotations

from tuner_cases import Example

LINEARS = ["q_proj", "down_proj"]
KERNELS = ["conv1", "conv2", "pointwise", "grouped", "out"]
EFFECTIVE = {"use_effective_conv2d": True, "decompose_factor": 2}
EXAMPLES = (
    Example("llama", {"r": 2, "alpha": 3, "target_modules": LINEARS}, "w2 decomposed"),
    Example("llama", {"r": 32, "alpha": 3, "target_modules": LINEARS}, "both whole"),
    Example(
        "llama",
        {"r": 1, "alpha": 3, "target_modules": LINEARS, "decompose_both": True},
        "both decomposed",
    ),
    Example("phi3", {"r": 2, "alpha": 5, "target_modules": ["qkv_proj"]}, "fused"),
    Example(
        "bert",
        {
            "r": 2,
            "alpha": 5,
            "target_modules": ["query", "dense"],
            "decompose_factor": 4,
            "alpha_pattern": {"query": 9},
        },
        "factor",
    ),
    Example("convnet", {"r": 1, "alpha": 3, "target_modules": KERNELS}),
    Example("convnet", {"r": 32, "alpha": 3, "target_modules": KERNELS}, "whole"),
    Example("convnet", {"r": 1, "alpha": 3, "target_modules": KERNELS, **EFFECTIVE}, "effective"),
)
