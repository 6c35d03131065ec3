"""IA3: outputs and inputs scaled, biases, convolutions with and without groups, Conv1D."""

from __future__ import annotations

from tuner_cases import Example

EXAMPLES = (
    Example(
        "llama",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    Example("opt", {"target_modules": ["k_proj", "fc2"], "feedforward_modules": ["fc2"]}),
    Example(
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "feedforward_modules": r".*mlp\.c_proj"},
    ),
    Example("llama", {"target_modules": ["q_proj"], "feedforward_modules": []}, "no feedforward"),
    Example(
        "phi3",
        {"target_modules": ["qkv_proj", "gate_up_proj"], "feedforward_modules": ["gate_up_proj"]},
        "fused",
    ),
    Example(
        "convnet",
        {"target_modules": ["conv2", "conv3", "out"], "feedforward_modules": ["conv3"]},
    ),
    Example(
        "convnet",
        {"target_modules": ["conv2", "pointwise"], "feedforward_modules": ["pointwise"]},
        "channels in",
    ),
)
