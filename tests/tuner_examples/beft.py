"""BEFT: biases alone; a layer without one is refused (tests/cli/test_not_mergeable.py)."""

from __future__ import annotations

from tuner_cases import Example

EXAMPLES = (
    Example("opt", {"target_modules": ["v_proj", "fc1"]}),
    Example("bert", {"target_modules": ["value"]}),
)
