"""MiSS (Kang & Yin 2024, arXiv:2409.15371), up to PEFT 0.18 known as Bone.

W'[o, i] = W[o, i] + M[i mod r, o]

`miss_block` M is (r, out), or for `init_weights="mini"` (r, mini_r), repeated until all outputs
have a column: a product of rank r, whose right factor is a row of identities. A block of three
axes is the other kind of update, "bat" (`miss_bat`). Source: PEFT 0.21.2, `miss/layer.py`; PEFT
0.15.2, `bone/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Declaration, Effect
from adaptool.model.view import View
from adaptool.tuners.products import LowRankUpdate, product_update

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="MiSS",
    peft_type="MISS",
    formerly="BONE",
    keys={"miss_block": "M", "bone_block": "M"},
    required=frozenset({"M"}),
    additive=True,
    low_rank=True,
    sizes_told=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Rank and outputs; the inputs are counted in the base alone."""
    shape, kind = shapes["M"], config.get("init_weights")
    bat = kind == "bat"
    if len(shape) != (3 if bat else 2) or (bat and shape[1] != shape[2]):
        message = f"{list(shape)} is no block of MiSS where init_weights is {kind!r}"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module, field="init_weights")
    if bat:
        return Terms(Form.LINEAR, shape[0] * shape[1], 0, 1.0, conventions={"block": shape[1]})
    out = 0 if kind == "mini" else shape[1]
    return Terms(Form.LINEAR, out, 0, scaling=1.0, rank=shape[0])


def effects(terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Effect, ...]:
    """Blocks that depend on W are another tuner's."""
    tuner = "miss_bat" if "block" in terms.conventions else ""
    return (Effect("weight", frozenset(shapes), terms, tuner=tuner),)


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:  # noqa: ARG001 - the seam passes all
    """MismatchError where the outputs that are stored do not repeat evenly."""
    count = delta.roles["M"].shape[1]
    if delta.terms.out % count:
        message = f"{count} outputs do not repeat evenly in the base's {delta.terms.out}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
    return delta.terms


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - MiSS knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """M^T, repeated, (out, r), and the identities (r, in)."""
    import torch

    if not terms.sized:
        message = "the layer's size is told by the base alone"
        raise InputError(message, code=Code.UNSUPPORTED, hint="name the base")
    block = factors["M"]
    rank = block.shape[0]
    left = block.T.repeat(terms.out // block.shape[1], 1)
    identity = torch.eye(rank, dtype=block.dtype, device=block.device)
    return left, identity.repeat(1, -(-terms.inner // rank))[:, : terms.inner]


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
