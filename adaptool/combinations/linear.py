"""Factor averaging, for compatibility: B and A are averaged apart, so the product is not a sum.

    B = sum_t sqrt|w_t s_t| B_t,    A = sum_t sgn(w_t s_t) sqrt|w_t s_t| A_t

with s_t the scaling and B_t, A_t the factors as trained. B A has T^2 - T cross terms B_t A_u that
no adapter was trained for; the error against sum_t w_t D_t is measured and reported. This is
PEFT's `linear` (add_weighted_adapter), formula for formula. PEFT adds in the adapter's dtype and
counts adapters of weight 0 when it compares ranks; here it is float64, and they are not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.method import Factored, Method, Options, Space
from adaptool.errors import MismatchError
from adaptool.findings import Code

if TYPE_CHECKING:
    import torch

METHOD = Method("average of the factors, as PEFT's linear", Space.FACTORS, needs_rank=False)


def merge(parts: Sequence[Factored], options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """The averaged factors, of the rank that all parts share.

    MismatchError where they do not share one.
    """
    import torch

    del options
    ranks = sorted({part.right.shape[0] for part in parts})
    if len(ranks) > 1:
        message = (
            f"the adapters have ranks {ranks}, and factors of different rank cannot be averaged"
        )
        raise MismatchError(
            message,
            code=Code.RANK_MISMATCH,
            hint="use --method svd --rank N, or --method cat, which take any ranks",
        )
    scales = [part.weight * part.scaling for part in parts]
    lefts = [part.left.double() * _as_trained(part) for part in parts]
    left = [math.sqrt(abs(scale)) * each for scale, each in zip(scales, lefts, strict=True)]
    right = [
        math.copysign(math.sqrt(abs(scale)), scale) * part.right.double()
        for scale, part in zip(scales, parts, strict=True)
    ]
    return torch.stack(left).sum(0), torch.stack(right).sum(0)


def _as_trained(part: Factored) -> float:
    # A scaling of 0 left zeros behind; what they are multiplied by does not matter.
    return 1 / part.scaling if part.scaling else 0.0
