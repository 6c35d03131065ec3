"""Concatenation: the weighted sum of the deltas, exactly, at the sum of the ranks.

    D = sum_t w_t D_t = [w_1 B_1 .. w_T B_T] [A_1; ..; A_T]

(CAT of LoRA Soups, Prabhakar et al. 2024, arXiv 2410.13025, learns the w_t.) PEFT's `cat` is the
same sum, with the weight on A; it also keeps the columns of adapters of weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.factor_space import stacked
from adaptool.combinations.method import Factored, Method, Options, Space

if TYPE_CHECKING:
    import torch

METHOD = Method("weighted sum, exact", Space.EXACT, needs_rank=False)


def merge(parts: Sequence[Factored], options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """The stacked factors."""
    del options
    return stacked(parts)
