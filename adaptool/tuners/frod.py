"""FRoD (2025): W in a basis that layers of one kind share, its scales and a few rotations trained.

W' = U (S + diag(l)) V^T,   U = W V^-T diag(1 / n),   n the norms of the columns of W V^-T

V (in, in) and the places of the trained numbers of the sparse S (in, in) are the same for all
layers of a category, which is the last one or two names of the module's path; l (in) is the
module's own. U follows from W and V, and is 0 where n is; training made it with the V that is in
the file. (PEFT, when it loads, makes it with a V made anew, which may be another one, and rounds
it to the base's dtype.) Where V was not saved it would follow from all layers of a category.
Source: PEFT 0.21.2, `frod/layer.py`, `frod/model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Effect, Update
from adaptool.model.view import View
from adaptool.tuners.placing import changed

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="FRoD",
    peft_type="FROD",
    keys={"frod_lambda_l": "l", "frod_lambda_s_values": "values"},
    shared={"frod_V.{}": "V.{}", "frod_s_indices.{}": "places.{}", "frod_s_size.{}": "size.{}"},
    required=frozenset({"l", "values"}),
    indices=frozenset({"places.{}", "size.{}"}),
    frozen=frozenset({"V.{}"}),
    additive=False,
    low_rank=False,
    invertible="no",
    may_be_empty=True,
    mixes=frozenset({INPUTS, OUTPUTS}),
    workspace=5,
)
_SMALLEST_NORM = 1e-12


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Inputs and category; InputError where tensors do not fit, MismatchError where V lacks."""
    del config
    category = _category(module)
    basis, places = shapes.get(f"V.{category}"), shapes.get(f"places.{category}")
    if basis is None or places is None:
        message = f"the basis of {category} was not saved; it follows from all layers of that kind"
        hint = "load the adapter with PEFT and save it with save_projection=True"
        code, field = Code.TUNER_UNSUPPORTED, "save_projection"
        raise MismatchError(message, code=code, tensor=module, field=field, hint=hint)
    scales, values = shapes["l"], shapes["values"]
    if len(scales) != 1 or basis != scales * 2 or len(values) != 1 or places != (2, *values):
        message = (
            f"frod_lambda_l {list(scales)} with a basis {list(basis)}, and {list(values)} values "
            f"for places {list(places)}"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    return Terms(Form.LINEAR, 0, scales[0], 1.0, conventions={"category": category})


def _category(module: str) -> str:
    """Which of the shared bases a module takes: its own name after its parent's."""
    *above, name = module.split(".")
    if not above or above[-1].isdigit():
        return name
    if (above[-1], name) == ("output", "dense") and above[-2:-1] == ["attention"]:
        return "attention_output"
    return f"{above[-1]}_{name}"


def effects(terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Effect, ...]:
    """The weight, by the module's own tensors and those of its category."""
    category = terms.conventions["category"]
    roles = {"l", "values", f"V.{category}", f"places.{category}", f"size.{category}"}
    return (Effect("weight", frozenset(roles & shapes.keys()), terms),)


def _core(factors: Mapping[str, torch.Tensor], terms: Terms) -> torch.Tensor:
    """S + diag(l), (in, in); InputError where S has places outside of it."""
    import torch

    places = factors[f"places.{terms.conventions['category']}"].long()
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < terms.inner:
        message = (
            f"frod_s_indices run from {int(places.min())} to {int(places.max())}, the layer has "
            f"{terms.inner} inputs"
        )
        raise InputError(message, code=Code.FIELD_VALUE)
    core = torch.diag(factors["l"])
    return core.index_put_((places[0], places[1]), factors["values"], accumulate=True)


def _directions(weights: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """U, (outputs, inputs) in float64."""
    import torch

    wide, square = weights.double(), basis.double()
    solved, failed = torch.linalg.solve_ex(square, wide.T)
    found = solved.T
    if int(failed):
        found = wide @ torch.linalg.pinv(square, rtol=1e-6).T
    norms = found.norm(dim=0)
    scales = norms.reciprocal().where(norms > _SMALLEST_NORM, torch.zeros_like(norms))
    directions: torch.Tensor = found * scales
    return directions


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> Update:
    """The update that replaces W; MismatchError where the view cuts it."""
    basis, core = factors[f"V.{terms.conventions['category']}"], _core(factors, terms)

    def adapted(weights: torch.Tensor) -> torch.Tensor:
        return _directions(weights, basis).to(weights.dtype) @ core @ basis.T

    return changed(adapted, DECLARATION, view, weight)
