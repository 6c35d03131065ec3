"""(IA)^3 (Liu et al. 2022, arXiv:2205.05638).

W' = diag(l) W,  b' = l b     or, for a feed-forward layer,     W' = W diag(l)

`ia3_l` is (out, 1), or (1, in) where the layer is listed in `feedforward_modules`: it scales what
goes out of the layer or what comes in. For a convolution it is (1, channels, 1, ...) in both
cases, and the config tells them apart. Source: PEFT 0.21.2, `ia3/layer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Effect
from adaptool.model.view import View
from adaptool.names.patterns import LONGEST_PATH, check_expression
from adaptool.tuners.placing import Along, replace

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="IA3",
    peft_type="IA3",
    keys={"ia3_l": "l"},
    required=frozenset({"l"}),
    additive=False,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Which axis is scaled; the other one's size stands in the base alone."""
    shape = shapes["l"]
    count = prod(shape)
    if len(shape) < 2 or count not in shape:
        message = f"ia3_l {list(shape)} is no vector along one axis"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    convolution = len(shape) > 2
    if convolution or count == 1:
        axis = INPUTS if _is_feedforward(config, module) else OUTPUTS
    else:
        axis = INPUTS if shape[0] == 1 else OUTPUTS
    known = not convolution and axis == INPUTS
    return Terms(
        form=Form.CONVOLUTION if convolution else Form.LINEAR,
        out=count if axis == OUTPUTS else 0,
        inner=count if known else 0,
        scaling=1.0,
        conventions={"axis": axis, "count": count},
    )


def _is_feedforward(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT takes the module for one of `feedforward_modules`."""
    listed = config.get("feedforward_modules") or ()
    if isinstance(listed, str):
        check_expression(listed, field="feedforward_modules")
        return re.fullmatch(listed, module[:LONGEST_PATH]) is not None
    return any(module.endswith(str(name)) for name in listed)


def effects(terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Effect, ...]:
    """The weight, and the bias where what goes out is scaled and there is one."""
    roles = frozenset(shapes)
    weight = Effect("weight", roles, terms)
    if terms.conventions["axis"] == INPUTS:
        return (weight,)
    bias = Terms(Form.VECTOR, terms.out, 1, scaling=1.0, conventions=terms.conventions)
    return weight, Effect("bias", roles, bias, optional=True)


class ScalingUpdate:
    """`weight * (l W - W)` with one l per output or input."""

    def __init__(self, gain: Along, weight: float) -> None:
        """`gain` is l along its axis."""
        self._gain, self._weight = gain, weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (l W - W)."""
        replace(out, base, base * self._gain.over(rows), self._weight)


class GroupedScalingUpdate:
    """The same for a grouped convolution: the channels of a row's group scale its columns."""

    def __init__(self, gains: torch.Tensor, height: int, weight: float) -> None:
        """gains (groups, columns); `height` rows belong to each group."""
        self._gains, self._height, self._weight = gains, height, weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (l W - W)."""
        groups = [row // self._height for row in range(rows.start, rows.stop)]
        replace(out, base, base * self._gains[groups], self._weight)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - one product in both precisions
) -> ScalingUpdate | GroupedScalingUpdate:
    """The scaling under `view`; MismatchError where the channels do not fit the kernel."""
    gain, axis = factors["l"].reshape(-1), str(terms.conventions["axis"])
    if terms.form is not Form.CONVOLUTION or axis == OUTPUTS:
        return ScalingUpdate(Along(gain, view, axis), weight)
    size = prod(terms.kernel)
    channels = terms.inner // size
    groups, rest = divmod(len(gain), channels)
    if rest or terms.out % groups:
        message = f"ia3_l has {len(gain)} channels, the kernel reads {channels} in each group"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH)
    gains = gain.reshape(groups, channels).repeat_interleave(size, dim=1)
    return GroupedScalingUpdate(gains, terms.out // groups, weight)
