"""Deltas that are computed in parts are the same under every view and in tiles of any height."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from adaptool.model.adapter import Form, Terms
from adaptool.model.view import Span, View, whole
from adaptool.tuners import tuners

OUT, INNER = 12, 8
DRAW = torch.Generator().manual_seed(11)
Factors = Mapping[str, torch.Tensor]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW, dtype=torch.float64)


TUNED: Mapping[str, tuple[str, Mapping[str, Any], Factors]] = {
    "C3A": ("c3a", {"block": 4}, {"kernel": _random(3, 2, 4)}),
    "WaveFT": ("waveft", {"seed": 5, "count": 30}, {"spectrum": _random(30)}),
    "WaveFT in db3": (
        "waveft",
        {"seed": 5, "count": 30, "wavelet": "db3"},
        {"spectrum": _random(30)},
    ),
    "GLoRA": (
        "glora",
        {},
        {"A.Xd": _random(OUT, 2), "A.Xu": _random(2, INNER), "B.X": _random(OUT, 1)},
    ),
}
TAKEN = {
    "whole": (None, None),
    "some outputs": (Span(2, 5), None),
    "every second output of two blocks": (Span(1, 2, step=2, blocks=2, stride=6), None),
    "some inputs": (None, Span(3, 4)),
    "some of both": (Span(4, 8), Span(0, 6)),
}


def _difference(name: str, view: View, base: torch.Tensor, height: int) -> torch.Tensor:
    tuner, own, factors = TUNED[name]
    terms = Terms(Form.LINEAR, OUT, INNER, 0.5, conventions=own)
    update = tuners()[tuner].prepare(factors, terms, view, 0.7, exact=True)
    out = base.clone()
    for start in range(0, len(base), height):
        rows = slice(start, min(start + height, len(base)))
        update.accumulate(out[rows], base[rows], rows)
    return out - base


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("transposed", [False, True])
def test_parts_under_a_view_are_parts_of_the_whole(name: str, taken: str, transposed: bool) -> None:
    """Rows and columns taken of a delta that lies either way, in tiles of five rows and of one."""
    weights = _random(OUT, INNER)
    whole_view = View(whole(OUT), whole(INNER))
    expected, base = _difference(name, whole_view, weights, OUT), weights
    outputs, inputs = TAKEN[taken]
    if outputs is not None:
        expected, base = (part[list(outputs.indices())] for part in (expected, base))
    if inputs is not None:
        expected, base = (part[:, list(inputs.indices())] for part in (expected, base))
    rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
    if transposed:
        expected, base = expected.T, base.T
    height, width = base.shape
    view = View(
        whole(height),
        whole(width),
        transposed=transposed,
        take_rows=rows,
        take_columns=columns,
    )
    for tile in (5, 1):
        found = _difference(name, view, base.contiguous(), tile)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
