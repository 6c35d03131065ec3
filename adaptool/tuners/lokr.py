"""LoKr (Yeh et al. 2023, arXiv:2309.14859).

W' = W + s kron(w1, w2),   s = alpha / r

w1 (o1, i1) and w2 (o2, i2 * kernel) stand in the file whole or as products a b; an "effective"
convolution stores t (r, r, *k), a (r, o2) and b (r, i2) for w2. s divides by the configured rank
even where neither is a product. PEFT's nn.Conv1d with a whole w2 (o2, i2, k) is another thing:
torch.kron lines the axes up from the last one, and the result is read as (out, in, k); adapters
are trained with that, so it is kept. Source: PEFT 0.21.2, `lokr/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import Span, View
from adaptool.tuners.lycoris import lycoris_scaling

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]

DECLARATION = Declaration(
    title="LoKr",
    peft_type="LOKR",
    keys={
        "lokr_w1": "w1",
        "lokr_w1_a": "w1_a",
        "lokr_w1_b": "w1_b",
        "lokr_w2": "w2",
        "lokr_w2_a": "w2_a",
        "lokr_w2_b": "w2_b",
        "lokr_t2": "t2",
    },
    required=frozenset(),
    additive=True,
    low_rank=True,
    invertible="rounding",
    proportional=("w1", "w1_a"),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and shapes; InputError where a factor is missing or its parts do not multiply."""
    first, second = _size(shapes, 1, module), _size(shapes, 2, module)
    ranks = {shapes[role][0] for role in ("w1_b", "w2_b") if role in shapes}
    if len(ranks) > 1:
        message = f"w1 and w2 have the ranks {sorted(ranks)}"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    scaling, rank, alpha = lycoris_scaling(config, module, ranks.pop() if ranks else None)
    whole = shapes.get("w2", ())
    kernel = shapes["t2"][2:] if "t2" in shapes else whole[2:]
    return Terms(
        form=Form.CONVOLUTION if kernel else Form.LINEAR,
        out=first[0] * second[0],
        inner=first[1] * second[1],
        scaling=scaling,
        rank=rank,
        alpha=alpha,
        kernel=kernel,
        conventions={"axes": "from-last"} if len(whole) == 3 else {},
    )


def _size(shapes: Mapping[str, tuple[int, ...]], place: int, module: str) -> tuple[int, int]:
    """Rows and columns (with the kernel) of w1 or w2."""
    whole = shapes.get(f"w{place}")
    a, b, t = shapes.get(f"w{place}_a"), shapes.get(f"w{place}_b"), shapes.get(f"t{place}")
    if whole is not None and a is b is t is None and len(whole) > 1:
        return whole[0], prod(whole[1:])
    if whole is None and a is not None and b is not None and len(a) == len(b) == 2:
        if t is None and a[1] == b[0]:
            return a[0], b[1]
        if t is not None and len(t) > 2 and t[:2] == (a[0], b[0]):
            return a[1], b[1] * prod(t[2:])
    found = sorted(role for role in shapes if role[1] == str(place))
    message = f"w{place} is given as {', '.join(found) or 'nothing'}, which makes no matrix"
    raise InputError(message, code=Code.FACTOR_MISSING, tensor=module)


def _thin(factors: Mapping[str, torch.Tensor], place: int) -> Pair:
    """w1 or w2 as a product of two matrices; a whole one times the smaller identity."""
    import torch

    whole = factors.get(f"w{place}")
    if whole is not None:
        matrix = whole.reshape(whole.shape[0], -1)
        one = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device)
        return (one, matrix) if matrix.shape[0] < matrix.shape[1] else (matrix, one)
    a, b = factors[f"w{place}_a"], factors[f"w{place}_b"]
    if f"t{place}" not in factors:
        return a, b
    right = torch.einsum("ij...,jr->ir...", factors[f"t{place}"], b)
    return a.T, right.reshape(right.shape[0], -1)


def _matrix(factors: Mapping[str, torch.Tensor], place: int) -> torch.Tensor:
    whole = factors.get(f"w{place}")
    if whole is not None:
        return whole.reshape(whole.shape[0], -1)
    left, right = _thin(factors, place)
    return left @ right


class KroneckerUpdate:
    """`scaling * kron(w1, w2)`, made row by row."""

    def __init__(self, w1: torch.Tensor, w2: torch.Tensor, view: View, scaling: float) -> None:
        """w1 and w2 as matrices, transposed where the view is."""
        self._w1, self._w2, self._scaling = w1, w2, scaling
        self._rows = _indices(view.take_rows)
        self._columns = _indices(view.take_columns)

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += s kron(w1, w2)[rows]."""
        wanted = range(rows.start, rows.stop) if self._rows is None else self._rows[rows]
        height = self._w2.shape[0]
        left = self._w1[[row // height for row in wanted]]
        right = self._w2[[row % height for row in wanted]]
        product = (left[:, :, None] * right[:, None, :]).reshape(len(wanted), -1)
        if self._columns is not None:
            product = product[:, self._columns]
        out.add_(product.mul_(self._scaling))


class DenseUpdate:
    """`scaling * D` for a D that is made whole."""

    def __init__(self, difference: torch.Tensor, scaling: float) -> None:
        """difference (rows, columns)."""
        self._difference = difference * scaling

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += s D[rows]."""
        out.add_(self._difference[rows])


def _indices(span: Span | None) -> list[int] | None:
    return None if span is None else list(span.indices())


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - PEFT's order is the same
) -> KroneckerUpdate | DenseUpdate:
    """The additive update under `view`."""
    import torch

    w1 = _matrix(factors, 1)
    if terms.conventions.get("axes") == "from-last":
        mixed = torch.einsum("pq,abc->apbqc", w1, factors["w2"])
        return DenseUpdate(mixed.reshape(terms.out, terms.inner), terms.scaling * weight)
    w2 = _matrix(factors, 2)
    if view.transposed:
        w1, w2 = w1.T, w2.T
    return KroneckerUpdate(w1, w2, view, terms.scaling * weight)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - LoKr knows no stacked experts
) -> Pair:
    """kron of the left factors (out, r1 r2) and of the right ones; UNSUPPORTED for Conv1d's."""
    if terms.conventions.get("axes") == "from-last":
        message = "the delta of this one-dimensional convolution is no product of thin factors"
        raise InputError(message, code=Code.UNSUPPORTED)
    (a1, b1), (a2, b2) = _thin(factors, 1), _thin(factors, 2)
    return _kron(a1, a2), _kron(b1, b2)


def _kron(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """torch.kron of two matrices; torch 2.13's own fails on strides that a size of 1 leaves."""
    product = first[:, None, :, None] * second[None, :, None, :]
    return product.reshape(first.shape[0] * second.shape[0], -1)
