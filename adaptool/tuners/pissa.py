"""PiSSA (Meng et al. 2024, arXiv:2404.02948).

W' = W - top_r(W) + s B A,   top_r(W) = U_r S_r V_r^T

Training began by moving the r leading singular directions of W into B0 A0 (with s B0 A0 =
top_r(W)) and leaving the rest in the base, so the plain base needs them taken away again. They
follow from W alone: with V_r the leading eigenvectors of W^T W, top_r(W) = W V_r V_r^T.
PEFT's randomised variant (`pissa_niter_N`) does not follow from W and needs the initial adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.linalg.factored import top_subspace
from adaptool.model.adapter import Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration
from adaptool.model.view import View
from adaptool.tuners.low_rank_factors import KEYS, PROPORTIONAL, effects, low_rank_update, terms
from adaptool.tuners.products import LowRankUpdate

if TYPE_CHECKING:
    import torch

__all__ = ["DECLARATION", "effects", "prepare", "terms"]

DECLARATION = Declaration(
    title="PiSSA",
    peft_type="LORA",
    keys=KEYS,
    required=frozenset({"A", "B"}),
    additive=False,
    low_rank=False,
    invertible="no",
    mixes=frozenset({INPUTS, OUTPUTS}),
    workspace=2,
    init="pissa",
    cuts_base=True,
    proportional=PROPORTIONAL,
)


class TallUpdate:
    """For a W with at most as many columns as rows: W V_r V_r^T is taken tile by tile."""

    def __init__(self, plain: LowRankUpdate, rank: int, weight: float) -> None:
        """`plain` adds the trained product; W^T W, (columns, columns), grows as W passes."""
        self._plain, self._rank, self._weight = plain, rank, weight
        self._gram: torch.Tensor | None = None

    def observe(self, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - order does not matter
        """Add W[rows]^T W[rows]."""
        tile = base.double()
        product = tile.T @ tile
        self._gram = product if self._gram is None else self._gram.add_(product)

    def settle(self) -> None:
        """The leading directions are known."""
        if self._gram is not None:
            self._directions = top_subspace(self._gram, self._rank)
        self._gram = None

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (s B A - W V_r V_r^T)."""
        directions = self._directions.to(base.dtype)
        leading = (base @ directions) @ directions.T
        out.sub_(leading, alpha=self._weight)
        self._plain.accumulate(out, base, rows)


class WideUpdate:
    """For a W with more columns than rows: W is kept, U_r comes from W W^T."""

    def __init__(self, plain: LowRankUpdate, rank: int, weight: float) -> None:
        """`plain` adds the trained product; all of W is held until it has been seen."""
        self._plain, self._rank, self._weight = plain, rank, weight
        self._tiles: list[torch.Tensor] = []

    def observe(self, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - rows come in order
        """Keep W[rows]."""
        self._tiles.append(base.double().clone())

    def settle(self) -> None:
        """top_r(W) = U_r (U_r^T W), as two thin factors."""
        import torch

        weight = torch.cat(self._tiles)
        self._tiles = []
        self._left = top_subspace(weight @ weight.T, self._rank)
        self._right = self._left.T @ weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (s B A - U_r U_r^T W)."""
        leading = self._left[rows].to(base.dtype) @ self._right.to(base.dtype)
        out.sub_(leading, alpha=self._weight)
        self._plain.accumulate(out, base, rows)


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> TallUpdate | WideUpdate:
    """The update that moves the leading directions; MismatchError where the view cuts W."""
    if view.take_rows is not None or view.take_columns is not None or view.expert is not None:
        message = "PiSSA's directions are of the whole weight, which the base stores in pieces"
        raise MismatchError(message, code=Code.UNSUPPORTED)
    plain = low_rank_update(factors, terms, view, weight, exact)
    kind = TallUpdate if view.columns.count <= view.rows.count else WideUpdate
    return kind(plain, terms.rank or 0, weight)
