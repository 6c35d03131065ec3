"""OFT (Qiu et al. 2023, arXiv:2306.07280) and COFT.

W' = diag(s) W D^T,   D = blockdiag(R_1 ... R_n),   R = (I - Q) (I + Q)^-1,   Q skew-symmetric

Since PEFT 0.16 `oft_R.weight` (n, b (b - 1) / 2) holds what lies above Q's diagonals, and there is
no s; `oft_embedding_R.weight` turns the rows of an embedding, E' = E D. With `use_cayley_neumann`
R is a truncated series of (I + Q) (I - Q)^-1 in its place, whose last term counts half since PEFT
0.18. Up to PEFT 0.15 `oft_r` (n, b, b) stands for Q = (r - r^T) / 2, `oft_s` (out, 1) for s. One
block for all (`block_share`) is stored once; COFT keeps |Q| below eps / sqrt(blocks stored).

PEFT's forward of a convolution with a kernel adds up overlapping patches since 0.16, which its own
merge does not do, and which no kernel of that size can hold: refused. Up to 0.15 it is exact.
Source: PEFT 0.21.2, 0.17.1 and 0.15.2, `oft/layer.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.placing import Along, changed
from adaptool.tuners.rotations import cayley, cayley_series, skew_of, skew_part, turned, within

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="OFT",
    peft_type="OFT",
    keys={
        "oft_R.weight": "R",
        "oft_embedding_R.weight": "embedding_R",
        "oft_r": "r",
        "oft_s": "s",
    },
    required=frozenset(),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({INPUTS}),
    workspace=3,
)
_EPS = 6e-5
# Since this release of PEFT, which is also the first to write its version, the series' last term
# counts half.
_HALVED_SINCE = (0, 18)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Block sizes; a shared block does not tell the inputs, and only `oft_s` the outputs."""
    if len(shapes.keys() & {"R", "embedding_R", "r"}) != 1 or ("s" in shapes) != ("r" in shapes):
        found = ", ".join(f"oft_{role}" for role in sorted(shapes))
        message = f"{found} together are no layout of PEFT's since 0.14"
        raise MismatchError(message, code=Code.TUNER_UNSUPPORTED, tensor=module)
    blocks, size = _old_blocks(shapes, module) if "r" in shapes else _blocks(shapes, module)
    shared = fields.flag(config, "block_share")
    if shared and blocks != 1:
        message = f"block_share is set, and there are {blocks} blocks"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module, field="block_share")
    conventions: dict[str, Any] = {"block": size}
    if "r" not in shapes and fields.flag(config, "use_cayley_neumann"):
        conventions["series"] = fields.whole(config, "num_cayley_neumann_terms", 5)
        conventions["last"] = 1.0 if _is_halved(config) else 2.0
    if fields.flag(config, "coft"):
        conventions["eps"] = fields.number(config, "eps", _EPS)
    if "embedding_R" in shapes:
        # The rows that it turns are the base's own, whatever the family does with linear layers.
        conventions["parameter"] = True
    out = shapes["s"][0] if "s" in shapes else 0
    inner = 0 if shared else blocks * size
    return Terms(Form.LINEAR, out, inner, scaling=1.0, conventions=conventions)


def _old_blocks(shapes: Mapping[str, tuple[int, ...]], module: str) -> tuple[int, int]:
    r, s = shapes["r"], shapes["s"]
    if len(r) != 3 or r[1] != r[2] or len(s) != 2 or s[1] != 1:
        message = f"oft_r {list(r)} and oft_s {list(s)} must be (blocks, b, b) and (outputs, 1)"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return r[0], r[1]


def _blocks(shapes: Mapping[str, tuple[int, ...]], module: str) -> tuple[int, int]:
    """Blocks and their size b, of which b (b - 1) / 2 numbers are stored."""
    (shape,) = shapes.values()
    count = shape[-1]
    size = (1 + math.isqrt(1 + 8 * count)) // 2
    if len(shape) != 2 or size * (size - 1) // 2 != count:
        message = f"{list(shape)} must be (blocks, b (b - 1) / 2)"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return shape[0], size


def _is_halved(config: Mapping[str, Any]) -> bool:
    version = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version") or ""))
    return version is not None and (int(version[1]), int(version[2])) >= _HALVED_SINCE


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:  # noqa: ARG001 - the seam passes all
    """MismatchError where the blocks do not divide the inputs, or the layer cannot be merged."""
    terms = delta.terms
    size = int(terms.conventions["block"])
    if terms.inner % size:
        message = f"blocks of {size} do not divide the base's {terms.inner} inputs"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
    if "r" not in delta.roles and math.prod(terms.kernel) > 1:
        message = (
            f"PEFT adds up overlapping patches in a convolution with kernel {list(terms.kernel)}, "
            "which no kernel of that size can hold"
        )
        raise MismatchError(message, code=Code.TUNER_NOT_MERGEABLE, tensor=delta.module)
    return terms


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the same steps in both precisions
) -> Update:
    """The rotation of what the layer reads, and what it gives scaled."""
    blocks = _rotation(factors, terms)
    if "embedding_R" in factors:
        blocks = blocks.transpose(1, 2)
    gain = Along(factors["s"].reshape(-1), view, OUTPUTS) if "s" in factors else None
    return changed(lambda w: turned(w, blocks), DECLARATION, view, weight, gain)


def _rotation(factors: Mapping[str, torch.Tensor], terms: Terms) -> torch.Tensor:
    """R of every block that is stored, (blocks, b, b)."""
    size, eps = int(terms.conventions["block"]), terms.conventions.get("eps")
    if "r" in factors:
        r = factors["r"]
        if eps is not None:
            # In these releases r, not Q, was kept small, by the outputs that a block stands for.
            height = math.ceil(terms.out / (terms.inner // size))
            r = within(r, float(eps) * height**2)
        return cayley(skew_part(r))
    stored = factors["R"] if "R" in factors else factors["embedding_R"]
    skew = skew_of(stored, size)
    if eps is not None:
        skew = within(skew, float(eps))
    if "series" in terms.conventions:
        return cayley_series(
            skew, int(terms.conventions["series"]), float(terms.conventions["last"])
        )
    return cayley(skew)
