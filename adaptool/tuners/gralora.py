"""GraLoRA (Jung et al. 2025, arXiv:2505.20355): a grid of k x k low-rank blocks.

W'[block j, block n] = W[block j, block n] + s B[j, n r' : (n+1) r']^T A[n, :, j r' : (j+1) r']^T

A is (k, in / k, r), B (k, r, out / k), r' = r / k: every block has its own rank-r' product, and
all of them together have rank k r. With `hybrid_r` a plain product of that rank, of
`gralora_A_general` (hybrid_r, in) and `gralora_B_general` (out, hybrid_r), is added at the same
scale s = alpha / (r + hybrid_r). Source: PEFT 0.21.2, `gralora/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.products import LowRankUpdate, product_update
from adaptool.tuners.scaling import LARGEST_FLOAT32

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="GraLoRA",
    peft_type="GRALORA",
    keys={
        "gralora_A": "A",
        "gralora_B": "B",
        "gralora_A_general.weight": "general_A",
        "gralora_B_general.weight": "general_B",
    },
    required=frozenset({"A", "B"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and sizes; InputError where the factors are no grid, or the config's rank differs."""
    a, b = shapes["A"], shapes["B"]
    if len(a) != 3 or len(b) != 3 or a[0] != b[0] or a[2] != b[1] or a[2] % a[0]:
        message = f"gralora_A {list(a)} and gralora_B {list(b)} are no grid of products"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    blocks, rank = a[0], a[2]
    out, inner = blocks * b[2], blocks * a[1]
    hybrid = _general_rank(shapes, (out, inner), module)
    given = fields.whole(config, "r"), fields.whole(config, "hybrid_r", 0, least=0)
    if given != (rank, hybrid):
        message = f"the config gives ranks {given}, the tensors have {(rank, hybrid)}"
        hint = "the scale would be wrong: correct r and hybrid_r"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r", hint=hint)
    alpha = fields.number(config, "alpha")
    scaling = alpha / (rank + hybrid)
    if not abs(scaling) <= LARGEST_FLOAT32:
        message = f"alpha {alpha:g} gives a scale that float32 cannot hold"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, tensor=module, field="alpha")
    return Terms(
        Form.LINEAR,
        out,
        inner,
        scaling,
        rank=blocks * rank + hybrid,
        alpha=alpha,
        conventions={"blocks": blocks},
    )


def _general_rank(shapes: Mapping[str, tuple[int, ...]], size: tuple[int, int], module: str) -> int:
    """The rank of the plain product; 0 where there is none."""
    a, b = shapes.get("general_A"), shapes.get("general_B")
    if a is None and b is None:
        return 0
    if a is None or b is None or a[0] != b[-1] or (b[0], a[-1]) != size:
        shown = ", ".join(str(list(shape)) for shape in (a, b) if shape is not None)
        message = f"gralora_A_general and gralora_B_general are {shown}, no product of {size}"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return a[0]


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - GraLoRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, k r + hybrid_r) and (k r + hybrid_r, in): block j n of the rank belongs to that block.

    Direction (j, n, t) has what B holds at (j, n r' + t) in block row j, and what A holds at
    (n, j r' + t) in block column n.
    """
    import torch

    blocks = terms.conventions["blocks"]
    a, b = factors["A"], factors["B"]
    share = a.shape[2] // blocks
    left = b.new_zeros((blocks, b.shape[2], blocks, blocks, share))
    right = a.new_zeros((blocks, blocks, share, blocks, a.shape[1]))
    for block in range(blocks):
        left[block, :, block] = b[block].T.reshape(-1, blocks, share)
        right[:, block, :, block] = a[block].T.reshape(blocks, share, -1)
    pair = left.reshape(terms.out, -1), right.reshape(-1, terms.inner)
    if "general_A" not in factors:
        return pair
    return (
        torch.cat((pair[0], factors["general_B"]), dim=1),
        torch.cat((pair[1], factors["general_A"])),
    )


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
