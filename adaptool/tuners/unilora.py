"""Uni-LoRA (Li et al. 2025, arXiv:2506.00799): all factors are picked from one trained vector.

W' = W + B A,   A = scales_A * theta[indices_A],   B = scales_B * theta[indices_B]

A (r, in), B (out, r); theta is shared by all layers. Indices and scales stand in the file if it
was saved with `save_indices=True`. Without them the file holds theta alone: PEFT draws them again
for all layers at once, in the order in which the model's code defines its modules, which neither
the adapter nor a checkpoint tells. Source: PEFT 0.21.2, `unilora/layer.py`, `unilora/model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners.products import LowRankUpdate, product_update

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="Uni-LoRA",
    peft_type="UNILORA",
    keys={
        "unilora_indices_A": "indices_A",
        "unilora_indices_B": "indices_B",
        "unilora_scales_A": "scales_A",
        "unilora_scales_B": "scales_B",
    },
    shared={"unilora_theta_d": "theta"},
    indices=frozenset({"indices_A", "indices_B"}),
    required=frozenset({"indices_A", "indices_B", "scales_A", "scales_B", "theta"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    frozen=frozenset({"scales_A", "scales_B"}),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes; InputError where indices and scales do not belong together."""
    del config
    a, b = shapes["indices_A"], shapes["indices_B"]
    paired = (shapes["scales_A"], shapes["scales_B"]) == (a, b)
    if not paired or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        message = (
            f"indices {list(a)} and {list(b)} with scales {list(shapes['scales_A'])} and "
            f"{list(shapes['scales_B'])} make no product"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.LINEAR, b[0], a[1], 1.0, rank=a[0])


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,  # noqa: ARG001 - the tensors tell all
    expert: int | None,  # noqa: ARG001 - Uni-LoRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """B (out, r) and A (r, in); InputError where an index lies outside of theta."""
    return _picked(factors, "B"), _picked(factors, "A")


def _picked(factors: Mapping[str, torch.Tensor], side: str) -> torch.Tensor:
    theta, indices = factors["theta"].reshape(-1), factors[f"indices_{side}"].long()
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= len(theta):
        message = f"unilora_indices_{side} run from {low} to {high}, theta has {len(theta)} numbers"
        raise InputError(message, code=Code.FIELD_VALUE)
    return theta[indices] * factors[f"scales_{side}"]


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
