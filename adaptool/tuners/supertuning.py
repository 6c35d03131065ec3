"""Super-Tuning and Supra (2026, arXiv:2607.09287): a few elements of W shifted, beside a LoRA.

W'.flatten()[p_k] = W.flatten()[p_k] + v_k,   with `r` besides   W'' = W' + s B A,   s = alpha / r

`supertuning_indices` p (n) are places in W (out, in), the largest or smallest of its elements when
training began; `supertuning_values` v (n). Source: PEFT 0.21.2, `supertuning/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.products import product_update
from adaptool.tuners.scaling import LARGEST_FLOAT32
from adaptool.tuners.sparse import sparse_update

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="Super-Tuning",
    peft_type="SUPERTUNING",
    keys={
        "supertuning_values": "values",
        "supertuning_indices": "indices",
        "supertuning_lora_A.weight": "A",
        "supertuning_lora_B.weight": "B",
    },
    required=frozenset({"values"}),
    indices=frozenset({"indices"}),
    additive=True,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and, where there is a LoRA, sizes; MismatchError where places are not saved."""
    values = shapes["values"]
    if "indices" not in shapes:
        message = (
            "which elements were trained was not saved: the largest or smallest of the base, in "
            "an order that equal ones make uncertain"
        )
        hint = "load the adapter with PEFT and save it with save_precomputed_indices=True"
        raise MismatchError(
            message,
            code=Code.TUNER_UNSUPPORTED,
            tensor=module,
            field="save_precomputed_indices",
            hint=hint,
        )
    if len(values) != 1 or shapes["indices"] != values:
        message = f"{list(values)} values for {list(shapes['indices'])} indices"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    if shapes.keys() == {"values", "indices"}:
        return Terms(Form.LINEAR, 0, 0, 1.0)
    return _with_factors(config, module, shapes)


def _with_factors(
    config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]
) -> Terms:
    a, b = shapes.get("A"), shapes.get("B")
    if a is None or b is None:
        message = "one factor of the product is there without the other one"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module)
    rank = fields.whole(config, "r")
    if len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (rank, rank):
        message = f"the factors are {list(a)} and {list(b)}, the config gives rank {rank}"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r")
    alpha = fields.number(config, "lora_alpha", 2.0 * rank)
    if not abs(alpha / rank) <= LARGEST_FLOAT32:
        message = f"lora_alpha {alpha:g} gives a scale that float32 cannot hold"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, tensor=module, field="lora_alpha")
    return Terms(Form.LINEAR, b[0], a[1], alpha / rank, rank=rank, alpha=alpha)


class Sum:
    """Two additive updates, one after the other."""

    def __init__(self, first: Update, second: Update) -> None:
        """Both of the same view."""
        self._parts = (first, second)

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """Add both."""
        for part in self._parts:
            part.accumulate(out, base, rows)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> Update:
    """The elements, then the product; MismatchError where a place lies outside of W."""
    places = factors["indices"].long()
    low, high = int(places.min()), int(places.max())
    if low < 0 or high >= terms.out * terms.inner:
        message = f"indices run from {low} to {high}, the weight is {terms.out} x {terms.inner}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH)
    outputs, inputs = places // terms.inner, places % terms.inner
    shifted = sparse_update(outputs, inputs, factors["values"] * weight, terms, view)
    if "A" not in factors:
        return shifted
    pair = factors["B"], factors["A"]
    return Sum(shifted, product_update(pair, view, terms.scaling * weight, exact=exact))
