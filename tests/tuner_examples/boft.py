"""BOFT: one butterfly factor and more, blocks counted or sized, convolutions."""

from __future__ import annotations

from tuner_cases import Example

SIZED = {"boft_block_size": 4, "boft_block_num": 0}
LINEARS = ["q_proj", "k_proj", "down_proj"]
EXAMPLES = (
    Example("llama", {**SIZED, "target_modules": LINEARS}),
    Example("llama", {**SIZED, "target_modules": LINEARS, "boft_n_butterfly_factor": 2}, "2"),
    Example("bert", {**SIZED, "target_modules": ["query"], "boft_n_butterfly_factor": 4}, "4"),
    Example(
        "opt",
        {
            "boft_block_size": 0,
            "boft_block_num": 8,
            "boft_n_butterfly_factor": 3,
            "target_modules": ["fc1"],
        },
        "blocks counted",
    ),
    Example(
        "convnet",
        {"boft_block_size": 3, "boft_block_num": 0, "target_modules": ["conv2", "pointwise"]},
    ),
    Example(
        "convnet",
        {"boft_block_size": 0, "boft_block_num": 1, "target_modules": ["square", "conv2"]},
        "one block",
    ),
)
