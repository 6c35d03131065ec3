"""HRA: reflections as they are and made orthogonal, an odd number of them, convolutions."""

from __future__ import annotations

from tuner_cases import Example

LINEARS = ["q_proj", "k_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {"r": 4, "target_modules": LINEARS}),
    Example("llama", {"r": 4, "target_modules": LINEARS, "apply_GS": True}, "orthogonal"),
    Example("bert", {"r": 3, "target_modules": ["query", "dense"]}),
    Example("convnet", {"r": 2, "target_modules": ["conv2", "pointwise", "out"]}),
    Example(
        "convnet", {"r": 4, "target_modules": ["conv2", "square"], "apply_GS": True}, "orthogonal"
    ),
)
