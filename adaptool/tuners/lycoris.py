"""What LoHa and LoKr share: s = alpha / r, looked up by module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.tuners import fields
from adaptool.tuners.scaling import LARGEST_FLOAT32, looked_up


def lycoris_scaling(
    config: Mapping[str, Any], module: str, tensor_rank: int | None
) -> tuple[float, int, float]:
    """Scaling, rank and alpha of one module; `tensor_rank` None where no tensor tells it.

    InputError: the config's rank is another one than the tensors', or s is no finite float32.
    """
    given = {
        "r": looked_up(config, "rank_pattern", module, config.get("r")),
        "alpha": looked_up(config, "alpha_pattern", module, config.get("alpha")),
    }
    rank, alpha = fields.whole(given, "r"), fields.number(given, "alpha")
    if tensor_rank not in (None, rank):
        message = f"the config gives rank {rank}, the tensors have rank {tensor_rank}"
        hint = "the scale would be wrong by their ratio: correct r or rank_pattern"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r", hint=hint)
    if not abs(alpha / rank) <= LARGEST_FLOAT32:
        message = f"alpha {alpha:g} gives a scale that float32 cannot hold"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, tensor=module, field="alpha")
    return alpha / rank, rank, alpha
