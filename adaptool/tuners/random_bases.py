"""RandLoRA's projections, drawn again as PEFT draws them: A (r, 1, smaller), B (larger, n, r).

Both are divided by their standard deviation. Source: PEFT 0.21.2, `randlora/model.py`.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]


@functools.lru_cache(maxsize=2)
def dense(key: int, rank: int, smaller: int, larger: int) -> Pair:
    """Uniform numbers in bfloat16: A with bound 1 / sqrt(smaller), then base by base of B.

    PEFT takes float16 where the machine has no bfloat16, which no file tells.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(key)

    def drawn(*shape: int) -> torch.Tensor:
        # What nn.init.kaiming_uniform_ with a = sqrt(5) takes for the inputs of such a shape.
        fan = shape[1] * shape[2]
        gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
        bound = math.sqrt(3.0) * (gain / math.sqrt(fan))
        return torch.empty(shape, dtype=torch.bfloat16).uniform_(-bound, bound, generator=generator)

    a = drawn(rank, 1, smaller)
    b = torch.cat([drawn(larger, 1, rank) for _ in range(-(-smaller // rank))], dim=1)
    return a / a.std(), b / b.std()


@functools.lru_cache(maxsize=2)
def sparse(key: int, rank: int, smaller: int, larger: int, sparsity: float) -> Pair:
    """-1, 0 and 1, of which one in `sparsity` is not 0, in float32."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(key)

    def drawn(*shape: int) -> torch.Tensor:
        uniform = torch.rand(shape, generator=generator)
        signs = (uniform > 1 - 1 / (2 * sparsity)).float()
        return signs.sub_((uniform < 1 / (2 * sparsity)).float())

    a, b = drawn(rank, 1, smaller), drawn(larger, -(-smaller // rank), rank)
    return a / a.std(), b / b.std()
