"""The dtype that a model's config names, for schemes that store none with a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.dtypes import BY_TORCH_NAME, DTYPES, Dtype

_PLAIN = frozenset({"F16", "BF16", "F32"})


def model_dtype(config: Mapping[str, Any]) -> Dtype:
    """What a loader creates the parameters in; bfloat16 where the config does not say."""
    inner = config.get("text_config")
    for level in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            found = BY_TORCH_NAME.get(str(level.get(key)).removeprefix("torch."))
            if found is not None and found.name in _PLAIN:
                return found
    return DTYPES["BF16"]
