"""OSF (Nayak et al. 2025, arXiv:2504.07097): the smallest singular components are trained.

W' = W - bottom_m(W) + U diag(S) V

U (out, m), S (m), V (m, in) began as the m smallest singular components of W; the others are kept.
m = min(out, in) - effective_rank, as the tensors tell, also where `effective_rank` is a fraction
or `rank_pattern` gives another one. PEFT's SVD is in float32, and it holds what W began with in
the base's dtype. Source: PEFT 0.21.2, `osf/layer.py`, `osf/utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners.components import bottom
from adaptool.tuners.placing import changed

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="OSF",
    peft_type="OSF",
    keys={
        "osf_svd_params.U_low": "U",
        "osf_svd_params.S_low": "S",
        "osf_svd_params.V_low": "V",
    },
    required=frozenset({"U", "S", "V"}),
    additive=False,
    low_rank=False,
    invertible="no",
    may_be_empty=True,
    mixes=frozenset({INPUTS, OUTPUTS}),
    workspace=6,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:  # noqa: ARG001 - the tensors tell the rank
    """Sizes and how many components are trained; InputError where the tensors do not fit."""
    u, s, v = shapes["U"], shapes["S"], shapes["V"]
    fits = len(u) == len(v) == 2 and len(s) == 1 and u[1] == s[0] == v[0]
    if not fits or s[0] > min(u[0], v[1]):
        message = f"U_low {list(u)}, S_low {list(s)} and V_low {list(v)} are no part of an SVD"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.LINEAR, u[0], v[1], 1.0, rank=s[0])


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> Update:
    """The update that takes components' place; MismatchError where the view cuts W."""
    trained = (factors["U"] * factors["S"]) @ factors["V"]

    def adapted(weights: torch.Tensor) -> torch.Tensor:
        return (weights - bottom(weights, terms.rank or 0)).add_(trained)

    return changed(adapted, DECLARATION, view, weight)
