"""PSOFT (Wu et al. 2026, openreview FSHrinMArK): the leading directions of W are turned.

W' = W + U S (R - I) V^T     or, with `pissa_init`,     W' = W + U S^1/2 (R - I) S^1/2 V^T

U S V^T are the r leading singular components of W, made again from W; PEFT divides them by the
scale alpha / r that it multiplies with afterwards. R = diag(b) R_0 diag(a); `psoft_R.weight` holds
what lies above the diagonal of a skew-symmetric Q, with R_0 = (I + Q) (I - Q)^-1 or the beginning
of its series, or without `psoft_orth` R_0 itself (r, r). The signs of singular directions, which
the result depends on, are those of LAPACK's SVD in float32 on a CPU; PEFT takes those of the
device that the base is on. Source: PEFT 0.21.2, `psoft/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.linalg.leading import leading, leading_sketched
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.placing import changed
from adaptool.tuners.rotations import cayley, cayley_series, skew_of, within

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="PSOFT",
    peft_type="PSOFT",
    keys={
        "psoft_R.weight": "R",
        "psoft_R.vector_a": "a",
        "psoft_R.vector_b": "b",
    },
    required=frozenset({"R"}),
    additive=False,
    low_rank=False,
    invertible="no",
    may_be_empty=True,
    mixes=frozenset({INPUTS, OUTPUTS}),
    workspace=5,
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """The rank and how R is made; both sizes stand in the base alone."""
    rank, alpha = fields.whole(config, "r"), fields.number(config, "psoft_alpha", 32.0)
    orthogonal = fields.flag(config, "psoft_orth", default=True)
    wanted = (rank * (rank - 1) // 2,) if orthogonal else (rank, rank)
    vectors = [shapes[role] for role in ("a", "b") if role in shapes]
    if shapes["R"] != wanted or any(shape != (rank,) for shape in vectors):
        found = ", ".join(str(list(shape)) for shape in shapes.values())
        message = f"the tensors are {found}, the config asks for R {list(wanted)} at rank {rank}"
        raise InputError(message, code=Code.RANK_MISMATCH, tensor=module, field="r")
    kinds = ("psoft_init", "pissa_init")
    halved = fields.word(config, "ab_svd_init", kinds, kinds[0]) == kinds[1]
    if alpha == 0 or (halved and alpha < 0):
        message = f"is {alpha:g}; PEFT divides by it" + (" and takes a root" if halved else "")
        raise InputError(message, code=Code.FIELD_VALUE, tensor=module, field="psoft_alpha")
    own = {"halved": halved, "orthogonal": orthogonal, **_series(config), **_sketch(config)}
    return Terms(Form.LINEAR, 0, 0, 1.0, rank=rank, alpha=alpha, conventions=own)


def _series(config: Mapping[str, Any]) -> dict[str, Any]:
    """How many terms of the series are taken, and what Q is kept within."""
    if not fields.flag(config, "use_cayley_neumann"):
        return {}
    found: dict[str, Any] = {"series": fields.whole(config, "num_cayley_neumann_terms", 5)}
    if config.get("cayley_neumann_eps") is None:
        return found
    eps = fields.number(config, "cayley_neumann_eps")
    if eps <= 0:
        message = f"is {eps:g}, must be above 0"
        raise InputError(message, code=Code.FIELD_VALUE, field="cayley_neumann_eps")
    return {**found, "eps": eps}


def _sketch(config: Mapping[str, Any]) -> dict[str, Any]:
    """Seed and steps of the randomised SVD."""
    if fields.word(config, "psoft_svd", ("full", "lowrank"), "full") == "full":
        return {}
    return {
        "seed": fields.whole(config, "random_seed", 0, least=0),
        "steps": fields.whole(config, "psoft_svd_lowrank_niter", 10, least=0),
    }


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:
    """The same terms; MismatchError where W has fewer components than are turned."""
    del among
    terms = delta.terms
    if (terms.rank or 0) > min(terms.out, terms.inner):
        message = f"rank {terms.rank}, the weight is {terms.out} x {terms.inner}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module, field="r")
    return terms


def _turn(factors: Mapping[str, torch.Tensor], terms: Terms) -> torch.Tensor:
    """R - I, (r, r)."""
    import torch

    own, rank = terms.conventions, terms.rank or 0
    turn = _rotation(factors["R"], own, rank) if own["orthogonal"] else factors["R"]
    if "b" in factors:
        turn = factors["b"][:, None] * turn
    if "a" in factors:
        turn = turn * factors["a"][None, :]
    return turn - torch.eye(rank, dtype=turn.dtype, device=turn.device)


def _rotation(upper: torch.Tensor, own: Mapping[str, Any], rank: int) -> torch.Tensor:
    skew = skew_of(upper[None], rank)
    if "eps" in own:
        skew = within(skew, own["eps"])
    found = cayley_series(skew, own["series"], 1.0) if "series" in own else cayley(-skew)
    return found[0]


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> Update:
    """The turned components; MismatchError where the view cuts W."""
    turn, own, rank = _turn(factors, terms), terms.conventions, terms.rank or 0

    def adapted(weights: torch.Tensor) -> torch.Tensor:
        if "seed" in own:
            found = leading_sketched(weights, rank, own["seed"], own["steps"])
        else:
            found = leading(weights, rank)
        u, values, v = (part.to(weights) for part in found)
        if own["halved"]:
            root = values.sqrt()
            return weights + (u * root) @ turn @ (root[:, None] * v)
        return weights + (u * values) @ turn @ v

    return changed(adapted, DECLARATION, view, weight)
