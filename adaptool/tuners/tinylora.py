"""TinyLoRA (Morris et al. 2026, arXiv:2602.04118): a few numbers steer the base's first directions.

W' = W + B R A,   R = sum_i v_i P_i

A (r, in) and B (out, r) are the first r singular directions of the base, P (u, r, r) is random and
frozen, v (u) is trained. Modules may share a v: of n modules, in the order in which the model's
code defines them, each takes one of g = max(1, round(n (1 - weight_tying))) vectors, n // g modules
in a row the same. That order stands nowhere in the file, but P tells it: module k's P was drawn
with the seed `projection_seed` + k. Source: PEFT 0.21.2, `tinylora/layer.py`, `tinylora/model.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.products import LowRankUpdate, product_update

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="TinyLoRA",
    peft_type="TINYLORA",
    keys={"tinylora_A": "A", "tinylora_B": "B", "tinylora_P": "P"},
    shared={"tinylora_v.{}": "v.{}"},
    required=frozenset({"A", "B"}),
    additive=True,
    low_rank=True,
    invertible="rounding",
    frozen=frozenset({"A", "B", "P"}),
)
_COMPARED = 8
"""How many numbers of a random P are compared."""


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Sizes and tying; InputError where tensors do not fit, MismatchError where P is not saved."""
    a, b = shapes["A"], shapes["B"]
    rank = a[0]
    if len(a) != 2 or len(b) != 2 or b[1] != rank:
        message = f"tinylora_A {list(a)} and tinylora_B {list(b)} make no product"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    vectors = {role: shape for role, shape in shapes.items() if role.startswith("v.")}
    if {f"v.{place}" for place in range(len(vectors))} != vectors.keys() or not vectors:
        message = f"{len(vectors)} trained vectors, and not all of those before the last"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module)
    own = {
        "seed": fields.whole(config, "projection_seed", 42, least=0),
        "tying": _tying(config),
        "vectors": len(vectors),
    }
    _check_projection(shapes, module, rank)
    return Terms(Form.LINEAR, b[0], a[1], 1.0, rank=rank, conventions=own)


def _tying(config: Mapping[str, Any]) -> float:
    tying = fields.number(config, "weight_tying", 0.0)
    if not 0 <= tying <= 1:
        message = f"is {tying}, must be between 0 and 1"
        raise InputError(message, code=Code.FIELD_VALUE, field="weight_tying")
    return tying


def _check_projection(shapes: Mapping[str, tuple[int, ...]], module: str, rank: int) -> None:
    if "P" not in shapes:
        message = (
            "the random projections were not saved; they follow from the order in which the "
            "model's code defines its layers"
        )
        hint = "load the adapter with PEFT and save it with save_projection=True"
        code = Code.TUNER_UNSUPPORTED
        raise MismatchError(message, code=code, tensor=module, field="save_projection", hint=hint)
    projection, vector = shapes["P"], shapes["v.0"]
    if len(vector) != 1 or projection != (vector[0], rank, rank):
        message = (
            f"tinylora_P {list(projection)} is no {rank} x {rank} matrix for each number of a "
            f"vector {list(vector)}"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:
    """With the number of modules; MismatchError where it asks for another number of vectors."""
    terms, modules = delta.terms, len({other.module for other in among})
    vectors, tying = terms.conventions["vectors"], terms.conventions["tying"]
    if _groups(modules, tying) != vectors:
        message = f"{modules} modules tied by {tying:g} take {_groups(modules, tying)} vectors"
        message += f", the file has {vectors}"
        code = Code.SHAPE_MISMATCH
        raise MismatchError(message, code=code, tensor=delta.module, field="weight_tying")
    return replace(terms, conventions={**terms.conventions, "modules": modules})


def _groups(modules: int, tying: float) -> int:
    """How many vectors there are; Python's rounding, as PEFT's."""
    return max(1, round(modules * (1.0 - tying)))


def _possible(terms: Terms) -> list[int]:
    """The numbers of modules for which there are as many vectors as there are."""
    own = terms.conventions
    if "modules" in own:
        return [own["modules"]]
    vectors, free = own["vectors"], 1.0 - own["tying"]
    most = int((vectors + 1) / free) + 1
    return [count for count in range(vectors, most) if _groups(count, own["tying"]) == vectors]


def _vector(factors: Mapping[str, torch.Tensor], terms: Terms) -> torch.Tensor:
    """The module's v; InputError where P does not tell which one it is."""
    vectors = terms.conventions["vectors"]
    if vectors == 1:
        return factors["v.0"]
    counts = _possible(terms)
    places = _drawn_as(factors["P"], terms.conventions["seed"], max(counts, default=0))
    found = {
        min(place // (count // vectors), vectors - 1)
        for count in counts
        for place in places
        if place < count
    }
    if len(found) == 1:
        return factors[f"v.{found.pop()}"]
    if places:
        message = "how many modules share a vector depends on how many there are"
        raise InputError(message, code=Code.UNSUPPORTED, hint="name the base")
    message = f"tinylora_P is not what projection_seed {terms.conventions['seed']} draws"
    raise InputError(message, code=Code.FIELD_VALUE, field="projection_seed")


def _drawn_as(projection: torch.Tensor, seed: int, modules: int) -> list[int]:
    """The modules, by their place in the model, that this P may have been drawn for."""
    import torch

    drawn = _beginnings(seed, tuple(projection.shape), modules)
    given = projection.flatten()[:_COMPARED].double().cpu()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        same = (drawn.to(dtype).double() == given).all(dim=1)
        if same.any():
            return [int(place) for place in same.nonzero()]
    return []


@functools.lru_cache(maxsize=4)
def _beginnings(seed: int, shape: tuple[int, ...], modules: int) -> torch.Tensor:
    """The first numbers of every module's P, (modules, at most 8), in float32."""
    import torch

    deviation = 1.0 / shape[-1] ** 0.5
    rows = []
    for place in range(modules):
        generator = torch.Generator(device="cpu").manual_seed(seed + place)
        drawn = torch.normal(mean=0.0, std=deviation, size=shape, generator=generator)
        rows.append(drawn.flatten()[:_COMPARED].clone())
    return torch.stack(rows) if rows else torch.empty((0, 1))


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - TinyLoRA knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """B R (out, r) and A (r, in)."""
    import torch

    vector = _vector(factors, terms)
    mixed = torch.einsum("i,ijk->jk", vector, factors["P"])
    return factors["B"] @ mixed, factors["A"]


def prepare(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The additive update under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)
