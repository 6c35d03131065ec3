"""RoAd (Liao and Monz 2024, arXiv:2409.00119): outputs are scaled and turned in pairs.

W' = R W,  b' = R b

The outputs fall into groups of `group_size`; in each, output i of the first half is paired with
output i of the second half. With c = alpha cos(theta) and s = alpha sin(theta):

(R y)[first] = c y[first] - s y[second],   (R y)[second] = c y[second] + s y[first]

`road_1` has one angle and one scale for a pair, `road_2` one for each output, `road_4` one for c
and another one for s. Source: PEFT 0.21.2, `road/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import OUTPUTS, Declaration, Effect, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.placing import changed

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]

DECLARATION = Declaration(
    title="RoAd",
    peft_type="ROAD",
    keys={"road_theta": "theta", "road_alpha": "alpha"},
    required=frozenset({"theta", "alpha"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
    mixes=frozenset({OUTPUTS}),
    workspace=4,
)
_HALVES = {"road_1": 1, "road_2": 2, "road_4": 4}
"""Variant -> numbers for each pair of outputs."""


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Outputs, which variant and count tell; the inputs stand in the base alone."""
    variant = fields.word(config, "variant", tuple(_HALVES), "road_1")
    group = fields.whole(config, "group_size", 64, least=2)
    theta, alpha = shapes["theta"], shapes["alpha"]
    count, each = theta[0], _HALVES[variant]
    if theta != alpha or len(theta) != 1 or group % 2 or count % (each * group // 2):
        message = (
            f"road_theta {list(theta)} and road_alpha {list(alpha)} are no {variant} of groups "
            f"of {group}"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module, field="group_size")
    own = {"variant": variant, "group": group}
    return Terms(Form.LINEAR, count // each * 2, 0, 1.0, conventions=own)


def effects(terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Effect, ...]:
    """The weight, and the bias where there is one."""
    roles = frozenset(shapes)
    bias = Terms(Form.VECTOR, terms.out, 1, 1.0, conventions=terms.conventions)
    return Effect("weight", roles, terms), Effect("bias", roles, bias, optional=True)


def _turns(factors: Mapping[str, torch.Tensor], terms: Terms) -> Pair:
    """c and s of every output, as (groups, 2, group / 2, 1)."""
    variant, half = terms.conventions["variant"], terms.conventions["group"] // 2
    shape = (-1, _HALVES[variant], half, 1)
    theta, alpha = factors["theta"].reshape(shape), factors["alpha"].reshape(shape)
    # road_4 has two halves for c and then two for s; the others have the same numbers for both.
    cosine = alpha[:, :2] * theta[:, :2].cos()
    sine = alpha[:, -2:] * theta[:, -2:].sin()
    return cosine, sine


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> Update:
    """The turned outputs under `view`; MismatchError where it cuts them."""
    import torch

    cosine, sine = _turns(factors, terms)

    def turned(weights: torch.Tensor) -> torch.Tensor:
        grouped = weights.reshape(len(cosine), 2, cosine.shape[2], -1)
        rotated = torch.stack((-grouped[:, 1], grouped[:, 0]), dim=1)
        return (grouped * cosine).add_(rotated.mul_(sine)).reshape(weights.shape)

    return changed(turned, DECLARATION, view, weight)
