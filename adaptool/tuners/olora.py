"""OLoRA (Büyükakyüz 2024, arXiv:2406.01775).

W' = W - s Q_r R_r + s B A,   W = Q R

Training began with B0 = Q_r and A0 = R_r, the first r columns of Q and rows of R, and with
s Q_r R_r taken out of the base. Q_r spans the first r columns C of W, so that
Q_r R_r = C (C^T C)^-1 C^T W, which one pass over W gives; no QR decomposition of W is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration
from adaptool.model.view import View
from adaptool.tuners.low_rank_factors import KEYS, effects, low_rank_update, terms
from adaptool.tuners.products import LowRankUpdate

if TYPE_CHECKING:
    import torch

__all__ = ["DECLARATION", "effects", "prepare", "terms"]

DECLARATION = Declaration(
    title="OLoRA",
    peft_type="LORA",
    keys=KEYS,
    required=frozenset({"A", "B"}),
    additive=False,
    low_rank=False,
    invertible="no",
    mixes=frozenset({INPUTS, OUTPUTS}),
    init="olora",
    cuts_base=True,
)


class ProjectionUpdate:
    """`weight * s * (B A - C (C^T C)^-1 C^T W)`."""

    def __init__(self, plain: LowRankUpdate, rank: int, scale: float) -> None:
        """`plain` adds the trained product; `scale` is weight * s."""
        self._plain, self._rank, self._scale = plain, rank, scale
        self._seen: torch.Tensor | None = None

    def observe(self, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - order does not matter
        """Add C[rows]^T W[rows], (r, columns)."""
        tile = base.double()
        product = tile[:, : self._rank].T @ tile
        self._seen = product if self._seen is None else self._seen.add_(product)

    def settle(self) -> None:
        """(C^T C)^-1 C^T W is known: (r, columns)."""
        import torch

        if self._seen is not None:
            self._right = torch.linalg.solve(self._seen[:, : self._rank], self._seen)
        self._seen = None

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * s * (B A - C R)."""
        leading = base[:, : self._rank] @ self._right.to(base.dtype)
        out.sub_(leading, alpha=self._scale)
        self._plain.accumulate(out, base, rows)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> ProjectionUpdate:
    """The update that takes the projection away; MismatchError where the view cuts or turns W."""
    cut = view.take_rows is not None or view.take_columns is not None or view.expert is not None
    if cut or view.transposed:
        message = (
            "OLoRA's columns are of the whole weight (out, in), which the base stores otherwise"
        )
        raise MismatchError(message, code=Code.UNSUPPORTED)
    plain = low_rank_update(factors, terms, view, weight, exact)
    return ProjectionUpdate(plain, terms.rank or 0, terms.scaling * weight)
