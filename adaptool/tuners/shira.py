"""SHiRA (Bhardwaj et al. 2024, arXiv:2406.13175): a few elements of W shifted.

W'[rows_k, columns_k] = W[rows_k, columns_k] + v_k

`shira_weight` v (n), `shira_indices` (2, n) outputs and inputs, whole numbers that PEFT writes as
float32 on Windows. An element that is named twice is shifted by the sum. Source: PEFT 0.21.2,
`shira/layer.py`, `shira/model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners.sparse import SparseUpdate, sparse_update

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="SHiRA",
    peft_type="SHIRA",
    keys={"shira_weight": "values", "shira_indices": "indices"},
    required=frozenset({"values", "indices"}),
    indices=frozenset({"indices"}),
    additive=True,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:  # noqa: ARG001 - the config says nothing
    """A matrix whose sizes stand in the base alone."""
    values, indices = shapes["values"], shapes["indices"]
    if len(values) != 1 or indices != (2, *values):
        message = f"shira_weight {list(values)} and shira_indices {list(indices)}: one index pair"
        message += " for each value is needed"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.LINEAR, 0, 0, scaling=1.0)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - one product, then one sum, in both precisions
) -> SparseUpdate:
    """The elements under `view`; MismatchError where one lies outside of the weight."""
    outputs, inputs = factors["indices"].long()
    for found, size, side in ((outputs, terms.out, "outputs"), (inputs, terms.inner, "inputs")):
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= size:
            message = f"shira_indices name {side} {low} to {high}, the layer has {size}"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH)
    return sparse_update(outputs, inputs, factors["values"] * weight, terms, view)
