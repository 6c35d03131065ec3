"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512).

W' = W + s B diag(E) A,   s = alpha / (init_r + 1e-5)

A (r, in), E (r, 1), B (out, r): a product like an SVD, whose singular triplets were pruned while
it was trained. The divisor stays the rank it began with, whatever is left of it; alpha <= 0 counts
as `init_r`. For a convolution A is (r, in * kernel). Source: PEFT 0.21.2, `adalora/layer.py`;
older releases saved `ranknum`, the divisor, beside the factors.
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
    title="AdaLoRA",
    peft_type="ADALORA",
    keys={"lora_A": "A", "lora_B": "B", "lora_E": "E", "ranknum": "ranknum"},
    required=frozenset({"A", "B", "E"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    may_be_empty=True,
)
_EPSILON = 1e-5


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and shapes; InputError where the three factors have different ranks."""
    a, b, e = shapes["A"], shapes["B"], shapes["E"]
    if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == e[0]:
        message = f"lora_A {list(a)}, lora_E {list(e)} and lora_B {list(b)} have no rank in common"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    begun = fields.whole(config, "init_r")
    alpha = fields.number(config, "lora_alpha")
    return Terms(
        form=Form.LINEAR,
        out=b[0],
        inner=a[1],
        scaling=(alpha if alpha > 0 else begun) / (begun + _EPSILON),
        rank=a[0],
        alpha=alpha,
        conventions={"divisor": begun},
    )


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - AdaLoRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """B (out, r) and diag(E) A (r, in)."""
    right = factors["A"] * factors["E"].reshape(-1, 1)
    if "ranknum" in factors:
        saved = factors["ranknum"].reshape(()) + _EPSILON
        right = right * ((terms.conventions["divisor"] + _EPSILON) / saved)
    return factors["B"], right


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update `weight * s * B diag(E) A` under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
