"""Updates that are a product of two thin factors, for tuners that make such factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.model.view import View

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]


class LowRankUpdate:
    """`scaling * left @ right`, rows and columns as the view takes them."""

    def __init__(
        self, left: torch.Tensor, right: torch.Tensor, scaling: float, *, exact: bool
    ) -> None:
        """left (rows, r), right (r, columns); in float64 the scale goes into the factor."""
        self._exact = exact
        self._left = left * scaling if exact else left
        self._right = right
        self._scaling = scaling

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += (left @ right)[rows] * s."""
        if self._exact:
            out.addmm_(self._left[rows], self._right)
        else:
            # float32: the product first, then the scale, then the sum, as PEFT does it.
            out.add_((self._left[rows] @ self._right).mul_(self._scaling))


def product_update(pair: Pair, view: View, scaling: float, *, exact: bool) -> LowRankUpdate:
    """The additive update `scaling * B A` under `view`; `pair` is B (out, r) and A (r, in)."""
    left, right = oriented_pair(pair, view)
    return LowRankUpdate(left, right, scaling, exact=exact)


def oriented_pair(pair: Pair, view: View) -> Pair:
    """left (rows, r) and right (r, columns) whose product is B A under `view`."""
    b, a = pair
    left, right = (a.T, b.T) if view.transposed else (b, a)
    if view.take_rows is not None:
        left = left[list(view.take_rows.indices())]
    if view.take_columns is not None:
        right = right[:, list(view.take_columns.indices())]
    return left.contiguous(), right.contiguous()
