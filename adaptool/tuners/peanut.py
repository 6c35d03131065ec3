"""PEANuT (Zhong et al. 2024, arXiv:2410.01870): a small network reads W and gives the change.

W' = W + s B z,   z_0 = f(A W),   z_i = f(E_i z_{i-1});   z = z_k, then z = f(D_i z) + z_{k-i}

A (r, out), B (out, r), encoders E_1 .. E_k and decoders D_1 .. D_k (r, r): the decoders add what
went into the encoders, last one first. f is the activation `act_fn`, k `depth`.
Every input's column of W is read by itself, so A W is all that is held of W. Source: PEFT 0.21.2,
`peanut/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import OUTPUTS, Declaration, Update
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.activations import NAMES, activation
from adaptool.tuners.reading import reading_update

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="PEANuT",
    peft_type="PEANUT",
    keys={
        "peanut_A.weight": "A",
        "peanut_B.weight": "B",
        "peanut_encoders.{}.weight": "encoder.{}",
        "peanut_decoders.{}.weight": "decoder.{}",
    },
    required=frozenset({"A", "B"}),
    additive=False,
    low_rank=False,
    invertible="no",
    mixes=frozenset({OUTPUTS}),
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Outputs and the network; InputError where tensors and config disagree."""
    a, b = shapes["A"], shapes["B"]
    if len(a) != 2 or b != a[::-1]:
        message = f"peanut_A {list(a)} and peanut_B {list(b)} are no way there and back"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    rank, depth = a[0], fields.whole(config, "depth", 0, least=0)
    square = {f"{side}.{place}" for side in ("encoder", "decoder") for place in range(depth)}
    if shapes.keys() - {"A", "B"} != square:
        message = f"the config gives depth {depth}, the file has {len(shapes) - 2} inner matrices"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module, field="depth")
    wrong = sorted(role for role in square if shapes[role] != (rank, rank))
    if wrong:
        message = f"{wrong[0]} is {list(shapes[wrong[0]])} beside matrices of rank {rank}"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module)
    name = config.get("act_fn", "relu")
    if name == "xielu":
        message = "the constants of xielu depend on the release of torch that trained it"
        raise MismatchError(message, code=Code.TUNER_UNSUPPORTED, tensor=module, field="act_fn")
    own = {"activation": fields.word(config, "act_fn", NAMES, "relu"), "depth": depth}
    scaling = fields.number(config, "scaling", 1.0)
    return Terms(Form.LINEAR, a[1], 0, scaling, rank=rank, conventions=own)


class Network:
    """From A W to what B takes back."""

    def __init__(self, factors: Mapping[str, torch.Tensor], terms: Terms) -> None:
        """`factors` holds the inner matrices among others."""
        depth = range(terms.conventions["depth"])
        self._act = activation(terms.conventions["activation"])
        self._encoders = [factors[f"encoder.{place}"] for place in depth]
        self._decoders = [factors[f"decoder.{place}"] for place in depth]

    def __call__(self, read: torch.Tensor) -> torch.Tensor:
        """(r, inputs) from (r, inputs)."""
        found = self._act(read)
        skipped = []
        for encoder in self._encoders:
            skipped.append(found)
            found = self._act(encoder @ found)
        for decoder in self._decoders:
            found = self._act(decoder @ found) + skipped.pop()
        return found


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> Update:
    """The network's change under `view`; MismatchError where that holds a part of the outputs."""
    pair = factors["A"], factors["B"]
    network = Network(factors, terms)
    return reading_update(pair, network, DECLARATION, view, terms.scaling * weight)
