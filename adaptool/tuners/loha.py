"""LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098, as FedPara).

W' = W + s (w1_a w1_b) * (w2_a w2_b)     elementwise,   s = alpha / r

w_a is (out, r), w_b (r, in), with in * kernel columns for a convolution. An "effective"
convolution stores t (r, r, *k), w_a (r, out) and w_b (r, in) for each of the two matrices, which
is w_a^T (t w_b). The product of two matrices of rank r has rank r^2: its factors are the row-wise
and column-wise Kronecker products of theirs. Source: PEFT 0.21.2, `loha/layer.py`.
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
from adaptool.tuners.lycoris import lycoris_scaling
from adaptool.tuners.products import oriented_pair

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]

DECLARATION = Declaration(
    title="LoHa",
    peft_type="LOHA",
    keys={
        "hada_w1_a": "w1_a",
        "hada_w1_b": "w1_b",
        "hada_w2_a": "w2_a",
        "hada_w2_b": "w2_b",
        "hada_t1": "t1",
        "hada_t2": "t2",
    },
    required=frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    proportional=("w1_a",),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and shapes; InputError where the two matrices are not of one shape."""
    sizes = [_size(shapes, place, module) for place in (1, 2)]
    if sizes[0] != sizes[1]:
        message = f"the two matrices are {sizes[0][:2]} and {sizes[1][:2]}, must be of one shape"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    out, inner, rank = sizes[0]
    scaling, _, alpha = lycoris_scaling(config, module, rank)
    effective = "t1" in shapes
    return Terms(
        form=Form.CONVOLUTION if effective else Form.LINEAR,
        out=out,
        inner=inner,
        scaling=scaling,
        rank=rank,
        alpha=alpha,
        kernel=shapes["t1"][2:] if effective else (),
    )


def _size(shapes: Mapping[str, tuple[int, ...]], place: int, module: str) -> tuple[int, int, int]:
    """Outputs, inputs * kernel and rank of one of the two matrices."""
    a, b, t = (shapes.get(role) for role in (f"w{place}_a", f"w{place}_b", f"t{place}"))
    if a is not None and b is not None and len(a) == len(b) == 2:
        if t is None and a[1] == b[0]:
            return a[0], b[1], b[0]
        if t is not None and len(t) > 2 and t[:2] == (a[0], b[0]):
            return a[1], b[1] * prod(t[2:]), a[0]
    shown = ", ".join(str(list(shape)) for shape in (a, b, t) if shape is not None)
    message = f"the factors of matrix {place} are {shown}, which is no product"
    raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)


def _pairs(factors: Mapping[str, torch.Tensor]) -> tuple[Pair, Pair]:
    """The two matrices, each as (out, r) and (r, in * kernel)."""
    first, second = (_pair(factors, place) for place in (1, 2))
    return first, second


def _pair(factors: Mapping[str, torch.Tensor], place: int) -> Pair:
    import torch

    a, b = factors[f"w{place}_a"], factors[f"w{place}_b"]
    if f"t{place}" not in factors:
        return a, b
    right = torch.einsum("ij...,jr->ir...", factors[f"t{place}"], b)
    return a.T, right.reshape(right.shape[0], -1)


class HadamardUpdate:
    """`scaling * (l1 r1) * (l2 r2)`, rows and columns as the view takes them."""

    def __init__(self, first: Pair, second: Pair, scaling: float) -> None:
        """Each pair is (rows, r) and (r, columns)."""
        self._first, self._second, self._scaling = first, second, scaling

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += s (l1 r1)[rows] * (l2 r2)[rows]."""
        (left, right), (other_left, other_right) = self._first, self._second
        product = (left[rows] @ right).mul_(other_left[rows] @ other_right)
        out.add_(product.mul_(self._scaling))


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - PEFT's order is the same
) -> HadamardUpdate:
    """The additive update under `view`."""
    first, second = (oriented_pair(pair, view) for pair in _pairs(factors))
    return HadamardUpdate(first, second, terms.scaling * weight)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - LoHa knows no stacked experts
) -> Pair:
    """(out, r^2) and (r^2, in * kernel)."""
    (left, right), (other_left, other_right) = _pairs(factors)
    b = (left[:, :, None] * other_left[:, None, :]).reshape(terms.out, -1)
    return b, (right[:, None, :] * other_right[None, :, :]).reshape(-1, terms.inner)
