"""MiSS with `init_weights="bat"`: what is added depends on W, block by block.

W'_pq = W_pq + W_pq M_p + M_p     for the r x r blocks p of outputs and q of inputs

`miss_block` M is (out / r, r, r). Source: PEFT 0.21.2, `miss/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners.placing import changed, part_of

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="MiSS (Bat)",
    peft_type="",
    keys={},
    required=frozenset({"M"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({INPUTS}),
    workspace=4,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Outputs and block size of M (out / r, r, r)."""
    del config, module
    blocks, size, _ = shapes["M"]
    return Terms(Form.LINEAR, blocks * size, 0, scaling=1.0, conventions={"block": size})


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:  # noqa: ARG001 - the seam passes all
    """MismatchError where the base's inputs are no whole number of blocks."""
    size = int(delta.terms.conventions["block"])
    if delta.terms.inner % size:
        message = f"blocks of {size} do not divide the base's {delta.terms.inner} inputs"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
    return delta.terms


class BlockUpdate:
    """`weight * (W_pq M_p + M_p)` where outputs are the base's rows."""

    def __init__(self, blocks: torch.Tensor, outputs: Sequence[int], weight: float) -> None:
        """blocks M (out / r, r, r); `outputs` which of the layer's outputs each row is."""
        self._blocks, self._outputs, self._weight = blocks, outputs, weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (W M + M)[rows]."""
        out.add_(_added(base, self._blocks, self._outputs[rows]), alpha=self._weight)


def _added(weights: torch.Tensor, blocks: torch.Tensor, outputs: Sequence[int]) -> torch.Tensor:
    """W M + M for the given outputs, W (outputs, in)."""
    import torch

    size = blocks.shape[-1]
    of_row = blocks[[output // size for output in outputs]]
    constant = blocks.reshape(-1, size)[list(outputs)]
    cut = weights.reshape(len(weights), -1, size)
    return torch.baddbmm(constant[:, None, :], cut, of_row).reshape(weights.shape)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the same steps in both precisions
) -> Update:
    """The update under `view`, by rows where they are the layer's outputs."""
    blocks, part = factors["M"], part_of(view, OUTPUTS)
    outputs = range(terms.out) if part is None else list(part.indices())
    if view.transposed or part_of(view, INPUTS) is not None:
        return changed(lambda w: w + _added(w, blocks, outputs), DECLARATION, view, weight)
    return BlockUpdate(blocks, outputs, weight)
