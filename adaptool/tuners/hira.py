"""HiRA (Huang et al. 2025, ICLR): W scaled element by element by a matrix of low rank.

W' = W * (1 + B A)     elementwise

A (r, in) and B (out, r); for an embedding the same, W being (out, in) = E^T; for a convolution A is
(r, in, *k) and B (out, r, 1, ...). There is no alpha. Source: PEFT 0.21.2, `hira/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners.products import oriented_pair

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="HiRA",
    peft_type="HIRA",
    keys={
        "hira_A": "A",
        "hira_B": "B",
        "hira_embedding_A": "embedding_A",
        "hira_embedding_B": "embedding_B",
    },
    required=frozenset(),
    additive=False,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:  # noqa: ARG001 - shapes tell everything
    """Sizes; InputError where the factors are not a pair."""
    embedding = "embedding_A" in shapes or "embedding_B" in shapes
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(shapes) != set(names):
        message = f"hira_{' and hira_'.join(sorted(shapes))} are no pair of factors"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module)
    a, b = (shapes[name] for name in names)
    if len(a) < 2 or len(a) != len(b) or a[0] != b[1] or prod(b[2:]) != 1:
        message = f"hira_A {list(a)} and hira_B {list(b)} have no rank in common"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    form = Form.CONVOLUTION if len(a) > 2 else Form.LINEAR
    return Terms(
        form=Form.EMBEDDING if embedding else form,
        out=b[0],
        inner=prod(a[1:]),
        scaling=1.0,
        rank=a[0],
        kernel=a[2:],
    )


class ElementwiseUpdate:
    """`weight * W * (left right)`, rows and columns as the view takes them."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor, weight: float) -> None:
        """left (rows, r) and right (r, columns)."""
        self._left, self._right, self._weight = left, right, weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * W * (left right)[rows]."""
        out.addcmul_(base, self._left[rows] @ self._right, value=self._weight)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the same steps in both precisions
) -> ElementwiseUpdate:
    """The update under `view`."""
    prefix = "embedding_" if terms.form is Form.EMBEDDING else ""
    b, a = factors[f"{prefix}B"], factors[f"{prefix}A"]
    pair = (b.reshape(terms.out, -1), a.reshape(-1, terms.inner))
    return ElementwiseUpdate(*oriented_pair(pair, view), weight)
