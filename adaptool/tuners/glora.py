"""GLoRA (Chavan et al. 2023, arXiv:2306.07967): generalized LoRA.

W' = W + W * A + B,   b' = b + b * D + E + W C

Each of the five is a product Xd Xu, a vector or a single number X, or nothing (PEFT saves `zeros`
for it). A and B are (out, in) or (out, 1), C is (in, 1), D and E are (out); * is elementwise. C, D
and E are trained only where the layer has a bias. Source: PEFT 0.21.2, `glora/layer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import OUTPUTS, Declaration, Effect
from adaptool.model.view import View
from adaptool.tuners.placing import Along, replace
from adaptool.tuners.products import oriented_pair

if TYPE_CHECKING:
    import torch

    Part = Callable[[slice], torch.Tensor]

Shapes = Mapping[str, tuple[int, ...]]

DECLARATION = Declaration(
    title="GLoRA",
    peft_type="GLORA",
    keys={f"glora_{path}.{{}}": f"{path}.{{}}" for path in "ABCDE"},
    frozen=frozenset(f"{path}.zeros" for path in "ABCDE"),
    required=frozenset(),
    additive=False,
    low_rank=False,
    invertible="rounding",
)
_WHOLE = ({"X"}, {"Xd", "Xu"}, {"zeros"})


def terms(config: Mapping[str, Any], module: str, shapes: Shapes) -> Terms:
    """Sizes, as far as any path tells them; InputError where paths are halves or disagree."""
    del config
    for path in "ABCDE":
        parts = {role[2:] for role in shapes if role[0] == path}
        if parts and parts not in _WHOLE:
            message = f"glora_{path} holds {' and '.join(sorted(parts))}"
            hint = "a path is Xd with Xu, or X, or zeros"
            raise InputError(message, code=Code.FACTOR_MISSING, tensor=module, hint=hint)
    sizes = [{size[axis] for size in map(_size, shapes.items()) if size[axis]} for axis in (0, 1)]
    for name, found in zip(("outputs", "inputs"), sizes, strict=True):
        if len(found) > 1:
            message = f"the paths are for {' and '.join(map(str, sorted(found)))} {name}"
            raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    (out, inner) = (found.pop() if found else 0 for found in sizes)
    return Terms(Form.LINEAR, out, inner, 1.0)


def _size(entry: tuple[str, tuple[int, ...]]) -> tuple[int, int]:
    """The outputs and inputs that one tensor tells; 0 for what it does not."""
    role, shape = entry
    path, part = role.split(".", 1)
    if prod(shape) == 1:
        return 0, 0
    if part == "Xu":
        return 0, 0 if path == "C" else shape[-1]
    if path == "C":
        return 0, shape[0]
    dense = path in "AB" and part == "zeros"
    return shape[0], shape[-1] if dense else 0


def effects(terms: Terms, shapes: Shapes) -> tuple[Effect, ...]:
    """The weight, and the bias where one of its three paths was trained."""
    trained = any(role[0] in "CDE" and not role.endswith(".zeros") for role in shapes)
    if not trained:
        return (Effect("weight", frozenset(shapes), terms),)
    of_bias = frozenset(role for role in shapes if role[0] in "CDE")
    bias = Terms(Form.VECTOR, terms.out, 1, 1.0)
    reads = {"W": "weight"} if any(role.startswith("C.X") for role in shapes) else {}
    return (
        Effect("weight", frozenset(shapes) - of_bias, terms),
        Effect("bias", of_bias, bias, reads=reads),
    )


class AffineUpdate:
    """`weight * (W * gain + shift)`."""

    def __init__(self, gain: Part, shift: Part, weight: float) -> None:
        """Both give numbers for rows of the tile, to be broadcast over it."""
        self._gain, self._shift, self._weight = gain, shift, weight

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """out += weight * (W * gain + shift)[rows]."""
        value = base + base * self._gain(rows)
        replace(out, base, value.add_(self._shift(rows)), self._weight)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> AffineUpdate:
    """The update of the weight, or of the bias, under `view`."""
    if terms.form is not Form.VECTOR:
        gain, shift = (_part(factors, path, view) for path in "AB")
        return AffineUpdate(gain, shift, weight)
    some = next(iter(factors.values()))
    scale, added = (factors.get(f"{path}.X", some.new_zeros(1)).expand(terms.out) for path in "DE")
    added = added + _coupled(factors, terms)
    scales, sums = Along(scale, view, OUTPUTS), Along(added, view, OUTPUTS)
    return AffineUpdate(scales.over, sums.over, weight)


def _part(factors: Mapping[str, torch.Tensor], path: str, view: View) -> Part:
    """Rows of A or B under `view`."""
    if f"{path}.Xd" in factors:
        left, right = oriented_pair((factors[f"{path}.Xd"], factors[f"{path}.Xu"]), view)
        return lambda rows: left[rows] @ right
    values = factors.get(f"{path}.X")
    if values is None or values.numel() == 1:
        some = next(iter(factors.values()))
        number = some.new_zeros(()) if values is None else values.reshape(())
        return lambda _: number
    return Along(values.reshape(-1), view, OUTPUTS).over


def _coupled(factors: Mapping[str, torch.Tensor], terms: Terms) -> torch.Tensor:
    """W C, (out); MismatchError where the base stores W otherwise than (out, in)."""
    some = next(iter(factors.values()))
    if "W" not in factors:
        return some.new_zeros(1)
    column = factors["C.Xd"] @ factors["C.Xu"] if "C.Xd" in factors else factors["C.X"]
    weights = factors["W"]
    if weights.shape != (terms.out, len(column)):
        message = (
            f"the bias needs a weight of {terms.out} x {len(column)}, the base has "
            f"{list(weights.shape)}"
        )
        raise MismatchError(message, code=Code.SHAPE_MISMATCH)
    return (weights @ column.to(weights)).reshape(-1)
