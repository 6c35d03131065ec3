"""DEFT and PaRa (2025): directions of what a layer gives are taken away and given anew.

W' = W - Q K^T W + s Q R     or, with `para`,     W' = W - Q K^T W

`deft_P` P (out, r), `deft_R` R (r, in), s = alpha / r, or 1 without an alpha. Q is P and K is
relu(P), or with the method "qr" both are the orthonormal columns of P's QR decomposition, with
LAPACK's signs. PEFT computes in float32. Source: PEFT 0.21.2, `deft/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.products import product_update
from adaptool.tuners.reading import reading_update
from adaptool.tuners.scaling import LARGEST_FLOAT32

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="DEFT",
    peft_type="DEFT",
    keys={"deft_P": "P", "deft_R": "R"},
    required=frozenset({"P"}),
    additive=False,
    low_rank=False,
    invertible="no",
    mixes=frozenset({OUTPUTS}),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes, scaling and method; the inputs stand in the base alone where nothing is given anew."""
    p, r = shapes["P"], shapes.get("R")
    if len(p) != 2 or (r is not None and (len(r) != 2 or r[0] != p[1])):
        message = f"deft_P {list(p)} and deft_R {list(r or ())} make no product"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    if fields.flag(config, "para") != (r is None):
        message = f"para is {config.get('para')}, and there is {'no' if r is None else 'a'} deft_R"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module, field="para")
    out, rank = p
    given = fields.whole(config, "r")
    if min(given, out) != rank:
        message = f"the config gives rank {given}, the tensors have rank {rank}"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r")
    # PEFT takes an alpha of 0 for none.
    alpha = fields.number(config, "alpha", 0.0) or float(rank)
    if not abs(alpha / rank) <= LARGEST_FLOAT32:
        message = f"alpha {alpha:g} gives a scale that float32 cannot hold"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, tensor=module, field="alpha")
    method = fields.word(config, "decomposition_method", ("relu", "qr"), "relu")
    inner = 0 if r is None else r[1]
    own = {"method": method}
    return Terms(Form.LINEAR, out, inner, alpha / rank, rank=rank, alpha=alpha, conventions=own)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> Update:
    """Both changes under `view`; MismatchError where that holds a part of the outputs."""
    import torch

    p = factors["P"]
    left, right = p, p.relu()
    if terms.conventions["method"] == "qr":
        # On the CPU whatever the device is: the signs are its own.
        left = right = torch.linalg.qr(p.cpu()).Q.to(p)
    besides = None
    if "R" in factors:
        given = left, factors["R"]
        besides = product_update(given, view, terms.scaling * weight, exact=exact)
    return reading_update((right.T, left), torch.neg, DECLARATION, view, weight, besides=besides)
