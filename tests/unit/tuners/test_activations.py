"""Activation functions against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from adaptool.tuners.activations import NAMES, activation

# Its constants are rounded to bfloat16 by the release of torch that runs; it is refused.
REFUSED = {"xielu"}


def test_all_but_one_are_known() -> None:
    """A name that transformers adds is missed here."""
    assert set(ACT2FN) == {*NAMES, *REFUSED}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_transformers(name: str) -> None:
    """In float64, around zero and far from it."""
    values = torch.cat((torch.linspace(-12, 12, 97), torch.tensor([0.0, 1e-9, -1e-9]))).double()
    theirs = ACT2FN[name].double() if name == "prelu" else ACT2FN[name]
    with torch.no_grad():
        assert torch.allclose(activation(name)(values), theirs(values), rtol=1e-12, atol=1e-14)
