"""C3A (Chen et al. 2024, arXiv:2407.19342): block-circular convolution.

W' = W + C / in,   C[p b + j, q b + n] = w[p, q, (n - j) mod b]

The kernel w is (out / b, in / b, b): one circulant block for each pair of block row and block
column. Source: PEFT 0.21.2, `c3a/layer.py`, which multiplies by it with a float32 FFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners.elements import ElementUpdate

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="C3A",
    peft_type="C3A",
    keys={"c3a_kernel": "kernel"},
    required=frozenset({"kernel"}),
    additive=True,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes, which the kernel tells; its last axis is the block's side."""
    del config
    shape = shapes["kernel"]
    if len(shape) != 3:
        message = f"c3a_kernel {list(shape)} is no grid of blocks"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    down, across, side = shape
    return Terms(Form.LINEAR, down * side, across * side, 1.0, conventions={"block": side})


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - one division in both precisions
) -> ElementUpdate:
    """The additive update under `view`."""
    kernel, side = factors["kernel"] / terms.inner, terms.conventions["block"]

    def circulant(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return kernel[outputs // side, inputs // side, (inputs - outputs) % side]

    return ElementUpdate(circulant, terms, view, weight, kernel)
