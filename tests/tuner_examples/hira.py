"""HiRA: linear layers, Conv1D, embeddings, convolutions of every dimension."""

from __future__ import annotations

from tuner_cases import Example

EXAMPLES = (
    Example("llama", {"r": 4, "target_modules": ["q_proj", "k_proj", "down_proj"]}),
    Example("llama", {"r": 4, "target_modules": ["embed_tokens", "o_proj"]}, "embedding"),
    Example(
        "gpt2", {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, "Conv1D"
    ),
    Example(
        "convnet",
        {"r": 2, "target_modules": ["conv1", "conv2", "conv3", "pointwise", "out", "embed"]},
    ),
)
