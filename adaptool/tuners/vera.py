"""VeRA (Kopiczko et al. 2023, arXiv:2310.11454).

W' = W + (lambda_b * B[:out]) (lambda_d * A[:, :in])

A (r, largest in) and B (largest out, r) are random, frozen and shared by all layers; the vectors
lambda_d (r) and lambda_b (out) are trained. Source: PEFT 0.21.2, `vera/model.py`, `vera/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.model.adapter import Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners.products import LowRankUpdate, product_update
from adaptool.tuners.projections import scaled_pair, settled, vector_terms

if TYPE_CHECKING:
    import torch

__all__ = ["DECLARATION", "prepare", "product_factors", "settled", "terms"]

DECLARATION = Declaration(
    title="VeRA",
    peft_type="VERA",
    keys={"vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d"},
    shared={"vera_A": "A", "vera_B": "B"},
    frozen=frozenset({"A", "B"}),
    required=frozenset({"lambda_b", "lambda_d"}),
    additive=True,
    low_rank=True,
    sizes_told=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Outputs and rank; InputError where vectors and projections do not fit each other."""
    return vector_terms(config, module, shapes)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - VeRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """lambda_b B (out, r) and lambda_d A (r, in)."""
    return scaled_pair(factors, terms)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
