"""The best approximation at a rank of the weighted sum of the deltas.

    D = trunc_k(sum_t w_t D_t)                              (Eckart and Young 1936)

(Task arithmetic, Ilharco et al. 2022, arXiv 2212.04089, with a truncation behind it.) PEFT's `svd`
is the same matrix from a full SVD of an out x in sum in the model's dtype; here it is the SVD of a
core of the size of the ranks' sum, in float64. PEFT puts all of S on B, here each factor carries
sqrt(S): the product is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.combinations.factor_space import stacked
from adaptool.combinations.method import Factored, Method, Options, Space

if TYPE_CHECKING:
    import torch

METHOD = Method("weighted sum, best approximation at a rank", Space.EXACT)


def merge(parts: Sequence[Factored], options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """The stacked factors; the truncation to `options.rank` follows for every method alike."""
    del options
    return stacked(parts)
