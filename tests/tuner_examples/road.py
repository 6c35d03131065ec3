"""RoAd: every variant, with and without biases."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"target_modules": ["q_proj", "down_proj"]}
OPT = {"target_modules": ["k_proj", "fc1"]}
EXAMPLES = (
    Example("llama", {**LLAMA, "variant": "road_1", "group_size": 8}, "road_1"),
    Example("llama", {**LLAMA, "variant": "road_2", "group_size": 4}, "road_2"),
    Example("llama", {**LLAMA, "variant": "road_4", "group_size": 16}, "road_4"),
    Example("opt", {**OPT, "variant": "road_1", "group_size": 16}, "road_1 with bias"),
    Example("opt", {**OPT, "variant": "road_4", "group_size": 8}, "road_4 with bias"),
)
