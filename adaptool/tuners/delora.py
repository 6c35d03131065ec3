"""DeLoRA (Bini et al. 2025, arXiv:2503.18225): a low-rank delta of bounded norm.

W' = W + (B diag(lambda / (r |a_i| |b_i|)) A) diag(n)

a_i are the rows of A (r, in), b_i the columns of B (out, r), lambda one trained number; n (in) are
the norms of the base's columns when training began, and stand in the file. A norm below 1e-4
counts as 1e-4. Source: PEFT 0.21.2, `delora/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
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
    title="DeLoRA",
    peft_type="DELORA",
    keys={
        "delora_A": "A",
        "delora_B": "B",
        "delora_lambda": "lambda",
        "delora_w_norm": "norms",
    },
    required=frozenset({"A", "B", "lambda", "norms"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    frozen=frozenset({"norms"}),
)
_LEAST_NORM = 1e-4


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes; the divisor r is the factors' own rank, which PEFT's `rank_pattern` set."""
    del config
    a, b = shapes["A"], shapes["B"]
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        message = f"delora_A {list(a)} and delora_B {list(b)} have no rank in common"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    if prod(shapes["norms"]) != a[1] or prod(shapes["lambda"]) != 1:
        message = (
            f"delora_w_norm {list(shapes['norms'])} and delora_lambda {list(shapes['lambda'])} "
            f"must be [{a[1]}] and [1]"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.LINEAR, b[0], a[1], 1.0, rank=a[0])


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - DeLoRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """B diag(lambda / (r |a| |b|)) (out, r) and A diag(n) (r, in)."""
    a, b = factors["A"], factors["B"]
    bounds = a.norm(dim=1).clamp_min(_LEAST_NORM) * b.norm(dim=0).clamp_min(_LEAST_NORM)
    gain = factors["lambda"].reshape(()) / (terms.rank or 1) / bounds
    return b * gain, a * factors["norms"].reshape(1, -1)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
