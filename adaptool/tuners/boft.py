"""BOFT (Liu et al. 2023, arXiv:2311.06243).

W' = diag(s) W D^T,   D = F_m ... F_1,   F_i = P_i blockdiag(R_i1 ... R_in) P_i^T

`boft_R` (m, n, b, b) holds one R = (I - Q) (I + Q)^-1 with Q = (r - r^T) / 2 for every factor and
block, `boft_s` the scale of every output, (out, 1) or (1, out). P_i is the butterfly permutation
that gathers even halves of blocks before odd ones within 2^i blocks; the first one, and the only
one where m is 1, moves nothing. Source: PEFT 0.21.2, `boft/layer.py`, which takes one factor
without its CUDA extension, whatever the config says: the tensor's shape decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners.placing import Along, changed
from adaptool.tuners.rotations import cayley, skew_part, turned

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="BOFT",
    peft_type="BOFT",
    keys={"boft_R": "R", "boft_s": "s"},
    required=frozenset({"R", "s"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({INPUTS}),
    workspace=4,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:  # noqa: ARG001 - shapes tell everything
    """Sizes; InputError where the blocks cannot be permuted."""
    shape, scales = shapes["R"], shapes["s"]
    out = prod(scales)
    if len(shape) != 4 or shape[2] != shape[3] or len(scales) != 2 or out not in scales:
        message = (
            f"boft_R {list(shape)} and boft_s {list(scales)} must be (factors, blocks, b, b) and "
            "one number for each output"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    count, blocks, size, _ = shape
    if count > 1 and (size % 2 or blocks % 2 ** (count - 1)):
        message = f"{blocks} blocks of {size} cannot be halved and joined {count - 1} times"
        raise InputError(message, code=Code.SHAPE_INVALID, tensor=module)
    return Terms(Form.LINEAR, out, blocks * size, scaling=1.0)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,  # noqa: ARG001 - shapes tell everything
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the same steps in both precisions
) -> Update:
    """The rotation of what the layer reads, and what it gives scaled."""
    stored = factors["R"]
    rotations = [cayley(skew_part(matrices)) for matrices in stored]
    orders = [_butterfly(place, stored) for place in range(1, len(stored))]

    def rotated(weights: torch.Tensor) -> torch.Tensor:
        value = turned(weights, rotations[0])
        for blocks, (there, back) in zip(rotations[1:], orders, strict=True):
            value = turned(value.index_select(1, there), blocks).index_select(1, back)
        return value

    gain = Along(factors["s"].reshape(-1), view, OUTPUTS)
    return changed(rotated, DECLARATION, view, weight, gain)


def _butterfly(place: int, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of W P_i, and of (...) P_i^T, as indices of the columns before."""
    import torch

    _, blocks, size, _ = stored.shape
    # Halves of blocks within 2^i blocks: the even ones first, then the odd ones.
    halves = torch.arange(blocks * size, device=stored.device).reshape(-1, 2**place, 2, size // 2)
    back = halves.transpose(1, 2).reshape(-1)
    return back.argsort(), back
