"""GLoRA as LyCORIS has it: the weight times a low-rank matrix, and a low-rank sum.

W' = W + s (W a1 a2 + b1 b2),   s = alpha / r

a1 is (in, r), a2 (r, in), b1 (out, r), b2 (r, in); for a convolution a1 and a2 act on the input
channels alone and b2 is (r, in, *k). PEFT's GLoRA multiplies W elementwise, which is another
thing. Source: LyCORIS 4.1.3, modules/glora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import INPUTS, Declaration
from adaptool.model.view import View
from adaptool.tuners.placing import part_of

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="GLoRA (LyCORIS)",
    peft_type="",
    keys={},
    required=frozenset({"a1", "a2", "b1", "b2"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({INPUTS}),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes and scaling, `r` and `alpha` of the config; InputError where factors do not fit."""
    a1, a2, b1, b2 = (shapes[role] for role in ("a1", "a2", "b1", "b2"))
    rank, inner = b2[:2] if len(b2) > 1 else (0, 0)
    expected = ((inner, rank), (rank, inner), (b1[0], rank))
    found = (a1[:2], a2[:2], b1[:2])
    if found != expected or any(prod(shape[2:]) != 1 for shape in (a1, a2, b1)):
        shown = ", ".join(str(list(shape)) for shape in (a1, a2, b1, b2))
        message = f"a1, a2, b1 and b2 are {shown}, which are no products of one rank"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    kernel = b2[2:]
    return Terms(
        form=Form.CONVOLUTION if kernel else Form.LINEAR,
        out=b1[0],
        inner=inner * prod(kernel),
        scaling=float(config["alpha"]) / rank,
        rank=rank,
        alpha=float(config["alpha"]),
        kernel=kernel,
    )


class ProductUpdate:
    """`scaling * (W a1 a2 + b1 b2)` for a base that stores outputs as rows."""

    def __init__(self, factors: tuple[torch.Tensor, ...], scaling: float) -> None:
        """a1 (in, r), a2 (r, in), b1 (rows, r), b2 (r, columns); columns are in * kernel."""
        self._a1, self._a2, self._b1, self._b2 = factors
        self._scaling = scaling

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += s (W a1 a2 + b1 b2)[rows]."""
        inputs = self._a1.shape[0]
        # (rows, in, kernel) -> (rows, kernel, in): what the products run over comes last.
        weights = base.reshape(len(base), inputs, -1).transpose(1, 2)
        mixed = ((weights @ self._a1) @ self._a2).transpose(1, 2).reshape(base.shape)
        out.add_((self._b1[rows] @ self._b2).add_(mixed).mul_(self._scaling))


class TurnedProductUpdate:
    """The same for a base that stores inputs as rows: (W a1)^T is seen over all of them first."""

    def __init__(self, factors: tuple[torch.Tensor, ...], scaling: float) -> None:
        """a1 (in, r), a2 (r, in), b1 (columns, r), b2 (r, rows)."""
        self._a1, self._a2, self._b1, self._b2 = factors
        self._scaling = scaling
        self._seen = self._b1.new_zeros((self._a1.shape[1], self._b1.shape[0]))

    def observe(self, base: torch.Tensor, rows: slice) -> None:
        """Add what these rows of W^T give of a1^T W^T."""
        self._seen += self._a1[rows].T @ base

    def settle(self) -> None:
        """All of W has been seen."""

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - W was seen before
        """out += s (a2^T a1^T W^T + b2^T b1^T)[rows]."""
        mixed = self._a2[:, rows].T @ self._seen
        out.add_((self._b2[:, rows].T @ self._b1.T).add_(mixed).mul_(self._scaling))


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> ProductUpdate | TurnedProductUpdate:
    """The update under `view`; MismatchError where the base has the inputs in pieces."""
    if part_of(view, INPUTS) is not None or view.expert is not None:
        message = "GLoRA mixes all inputs of a weight that the base has in pieces"
        raise MismatchError(message, code=Code.UNSUPPORTED)
    matrices = {role: value.reshape(len(value), -1) for role, value in factors.items()}
    outputs = view.take_columns if view.transposed else view.take_rows
    if outputs is not None:
        matrices["b1"] = matrices["b1"][list(outputs.indices())]
    order = tuple(matrices[role] for role in ("a1", "a2", "b1", "b2"))
    kind = TurnedProductUpdate if view.transposed else ProductUpdate
    return kind(order, terms.scaling * weight)
