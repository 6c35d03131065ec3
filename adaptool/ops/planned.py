"""What `inspect` would say of a model that is not written yet, or not here any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

from adaptool.model.plan import Plan
from adaptool.model.results import CheckpointSummary
from adaptool.ops.inspect import architecture_of, quantization_of


def planned_summary(plan: Plan, config: Mapping[str, Any] | None) -> CheckpointSummary:
    """The summary of the model that `plan` writes with this config.json; tied pairs left out."""
    return CheckpointSummary(
        path="",
        tensor_count=len(plan.rows),
        shards=tuple((file.name, file.size) for file in plan.files),
        parameters=sum(prod(row.shape) for row in plan.rows),
        bytes=plan.bytes,
        dtypes=dict(sorted(Counter(row.dtype.name for row in plan.rows).items())),
        quantization=quantization_of(config),
        tied=(),
        architecture=architecture_of(config),
        findings=(),
    )
