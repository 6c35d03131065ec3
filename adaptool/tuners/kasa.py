"""KaSA (Wang et al. 2024, arXiv:2412.06071).

W' = W - bottom_r(W) + s B diag(d) A

Training began by dropping the r smallest singular components of W, bottom_r(W), from the base; d
(r) are trained singular values. The components follow from W alone. PEFT's SVD is in float32.
Source: PEFT 0.21.2, `KasaLinearVariant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import low_rank_factors as plain
from adaptool.tuners.components import bottom
from adaptool.tuners.low_rank_factors import effects
from adaptool.tuners.placing import changed

if TYPE_CHECKING:
    import torch

__all__ = ["DECLARATION", "effects", "prepare", "terms"]

DECLARATION = Declaration(
    title="KaSA",
    peft_type="LORA",
    keys={**plain.KEYS, "lora_diag": "diag"},
    required=frozenset({"A", "B"}),
    additive=False,
    low_rank=False,
    invertible="no",
    mixes=frozenset({INPUTS, OUTPUTS}),
    workspace=8,
    switch="kasa_config",
    cuts_base=True,
    proportional=plain.PROPORTIONAL,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """LoRA's terms; InputError where the singular values are missing, or W has no r components."""
    factors = {role: shape for role, shape in shapes.items() if role != "diag"}
    found = plain.terms(config, module, factors)
    diagonal = shapes.get("diag")
    if diagonal != (found.rank,):
        given = "no lora_diag" if diagonal is None else f"a lora_diag {list(diagonal)}"
        message = f"there is {given} beside factors of rank {found.rank}"
        code = Code.FACTOR_MISSING if diagonal is None else Code.FACTOR_RANKS_DIFFER
        raise InputError(message, code=code, tensor=module)
    if found.kernel or (found.rank or 0) >= min(found.out, found.inner):
        message = f"{found.out} x {found.inner} at rank {found.rank} leaves nothing of the base"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return found


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> Update:
    """The update that drops components of W; MismatchError where the view cuts W."""
    b, a = plain.product_factors(factors, terms, view.expert)
    left = b * factors["diag"]

    def adapted(weights: torch.Tensor) -> torch.Tensor:
        kept = weights - bottom(weights, terms.rank or 0)
        return kept.addmm_(left, a, alpha=terms.scaling)

    return changed(adapted, DECLARATION, view, weight)
