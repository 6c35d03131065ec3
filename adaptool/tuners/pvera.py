"""PVeRA (Fillioux et al. 2025, arXiv:2512.07703): VeRA whose bottleneck is a distribution.

W' = W + (lambda_b * B[:out]) (lambda_d[:r] * A[:r, :in])

A (2 r, largest in) and lambda_d (2 r) give r means and r log variances; B (largest out, r). The
merged weight computes the mean, as PEFT's merge does, also where `sample_at_inference` asks the
adapted model to draw around it. Source: PEFT 0.21.2, `pvera/model.py`, `pvera/layer.py`.
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
    title="PVeRA",
    peft_type="PVERA",
    keys={"pvera_lambda_b": "lambda_b", "pvera_lambda_d": "lambda_d"},
    shared={"pvera_A": "A", "pvera_B": "B"},
    required=frozenset({"lambda_b", "lambda_d"}),
    additive=True,
    low_rank=True,
    sizes_told=False,
    invertible="rounding",
    frozen=frozenset({"A", "B"}),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Outputs and rank; InputError where vectors and projections do not fit each other."""
    return vector_terms(config, module, shapes, directions=2)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - PVeRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """lambda_b B (out, r) and the means' half of lambda_d A (r, in)."""
    return scaled_pair(factors, terms)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
