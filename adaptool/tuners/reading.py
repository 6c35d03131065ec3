"""Changes that read W through a thin matrix: back between(into W), and what is added besides.

Each input's column of W is read by itself, over all outputs. Where the base stores W as (outputs,
inputs) `into W` grows as W passes, so W is never held; where it is turned, a tile is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.tuner import OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners.placing import part_of

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]
    Between = Callable[[torch.Tensor], torch.Tensor]


class ReadingUpdate:
    """For a W of (outputs, inputs): `into` W grows as W passes."""

    def __init__(self, pair: Pair, between: Between, weight: float, besides: Update | None) -> None:
        """`pair` is into (r, rows) and back (rows, r)."""
        self._into, self._back = pair
        self._between, self._weight, self._besides = between, weight, besides
        self._read: torch.Tensor | None = None

    def observe(self, base: torch.Tensor, rows: slice) -> None:
        """Add into[:, rows] W[rows]."""
        part = self._into[:, rows] @ base
        self._read = part if self._read is None else self._read.add_(part)

    def settle(self) -> None:
        """All of W has been read."""
        if self._read is not None:
            self._given = self._between(self._read)
        self._read = None

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * back[rows] between(into W)."""
        if self._besides is not None:
            self._besides.accumulate(out, base, rows)
        out.add_(self._back[rows] @ self._given, alpha=self._weight)


class TurnedUpdate:
    """For a W that is stored as (inputs, outputs): each row is read by itself."""

    def __init__(self, pair: Pair, between: Between, weight: float, besides: Update | None) -> None:
        """`pair` is into (r, columns) and back (columns, r)."""
        self._into, self._back = pair
        self._between, self._weight, self._besides = between, weight, besides

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (back between(into W))^T."""
        given = self._between(self._into @ base.T)
        if self._besides is not None:
            self._besides.accumulate(out, base, rows)
        out.add_((self._back @ given).T, alpha=self._weight)


def reading_update(
    pair: Pair,
    between: Between,
    declared: Declaration,
    view: View,
    weight: float,
    *,
    besides: Update | None = None,
) -> Update:
    """`weight * back between(into W)` for into (r, out) and back (out, r), under `view`.

    `between` takes and gives (r, n) for any n inputs, column by column; `besides` is an additive
    update of the same view. MismatchError where the view holds a part of the outputs.
    """
    if part_of(view, OUTPUTS) is not None or view.expert is not None:
        message = f"{declared.title} reads all outputs of a weight that the base has in pieces"
        raise MismatchError(message, code=Code.UNSUPPORTED)
    kind = TurnedUpdate if view.transposed else ReadingUpdate
    return kind(pair, between, weight, besides)
