"""C3A: square blocks, grids that are not square, block sizes by pattern."""

from __future__ import annotations

from tuner_cases import Example

EXAMPLES = (
    Example("llama", {"block_size": 8, "target_modules": ["q_proj", "down_proj"]}, loose=True),
    Example(
        "bert",
        {
            "block_size": 16,
            "block_size_pattern": {"attention.output.dense": 4},
            "target_modules": ["query", "dense"],
        },
        "pattern",
        loose=True,
    ),
    Example("phi3", {"block_size": 4, "target_modules": ["qkv_proj"]}, loose=True),
)
