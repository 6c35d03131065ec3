"""VB-LoRA (Li et al. 2024, arXiv:2405.15179): LoRA whose factors are mixed from a bank of vectors.

W' = W + B A,   A[i, tile] = sum over the top k of softmax(logits_A[i, tile]) bank

`vblora_vector_bank` (vectors, l) is shared by all modules. `vblora_logits_A` is (r, in / l,
vectors), `vblora_logits_B` (out / l, r, vectors). With `save_only_topk_weights` their k largest
places stand in `..._topk_indices` and all shares but the last in `..._topk_weights`. There is no
alpha. Source: PEFT 0.21.2, `vblora/layer.py`, `vblora/model.py`.
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

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="VB-LoRA",
    peft_type="VBLORA",
    keys={
        "vblora_logits_A": "logits_A",
        "vblora_logits_B": "logits_B",
        "vblora_logits_A_topk_indices": "indices_A",
        "vblora_logits_B_topk_indices": "indices_B",
        "vblora_logits_A_topk_weights": "weights_A",
        "vblora_logits_B_topk_weights": "weights_B",
    },
    shared={"vblora_vector_bank": "bank"},
    required=frozenset({"bank"}),
    indices=frozenset({"indices_A", "indices_B"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    may_be_empty=True,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes and k; InputError where bank and factors do not fit each other."""
    if len(shapes["bank"]) != 2:
        message = f"vblora_vector_bank {list(shapes['bank'])} must be (vectors, length)"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    vectors, length = shapes["bank"]
    (rank, inner, count), (out, other, _) = (
        _tiles(shapes, side, vectors, module) for side in ("A", "B")
    )
    if rank != other:
        message = f"logits of A have rank {rank}, of B {other}"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    topk = fields.whole(config, "topk") if count is None else count
    if topk > vectors:
        message = f"is {topk}, the bank has {vectors} vectors"
        raise InputError(message, code=Code.FIELD_VALUE, tensor=module, field="topk")
    return Terms(
        form=Form.LINEAR,
        out=out * length,
        inner=inner * length,
        scaling=1.0,
        rank=rank,
        conventions={"topk": topk},
    )


def _tiles(
    shapes: Mapping[str, tuple[int, ...]], side: str, vectors: int, module: str
) -> tuple[int, int, int | None]:
    """The two axes of a factor's tiles, and k where its places are stored."""
    logits, indices = shapes.get(f"logits_{side}"), shapes.get(f"indices_{side}")
    weights = shapes.get(f"weights_{side}")
    if indices is None and weights is None and logits is not None:
        if len(logits) == 3 and logits[2] == vectors:
            return logits[0], logits[1], None
    elif logits is None and indices is not None and weights is not None:
        shares = (*indices[:-1], indices[-1] - 1)
        if len(indices) == 3 and weights == shares:
            return indices
    found = ", ".join(str(list(shape)) for shape in (logits, indices, weights) if shape is not None)
    message = f"the logits, places or shares of {side} are {found or 'missing'}, the bank has"
    message += f" {vectors} vectors"
    raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - VB-LoRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """B (out, r) and A (r, in), mixed from the bank."""
    rank = terms.rank or 0
    a, b = (_mixed(factors, side, terms) for side in ("A", "B"))
    return b.transpose(1, 2).reshape(-1, rank), a.reshape(rank, -1)


def _mixed(factors: Mapping[str, torch.Tensor], side: str, terms: Terms) -> torch.Tensor:
    """The factor's tiles, (..., l)."""
    import torch

    bank = factors["bank"]
    if f"logits_{side}" in factors:
        found = factors[f"logits_{side}"].topk(int(terms.conventions["topk"]), dim=-1)
        shares, places = found.values.softmax(-1), found.indices
    else:
        stored, places = factors[f"weights_{side}"], factors[f"indices_{side}"].long()
        shares = torch.cat([stored, 1 - stored.sum(-1, keepdim=True)], dim=-1)
        low, high = int(places.min()), int(places.max())
        if low < 0 or high >= len(bank):
            message = f"vectors {low} to {high} are named, the bank has {len(bank)}"
            raise InputError(message, code=Code.SHAPE_MISMATCH)
    return (shares.unsqueeze(-1) * bank[places]).sum(-2)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
