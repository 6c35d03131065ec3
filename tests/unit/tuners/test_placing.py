"""A tuner says outputs and inputs; where they lie in a base's tensor is found from the view."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from adaptool.errors import MismatchError
from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, Observing, Update
from adaptool.model.view import Span, View, whole
from adaptool.tuners.placing import Along, changed

Change = Callable[[torch.Tensor], torch.Tensor]


def _declared(*mixes: str) -> Declaration:
    return Declaration(
        title="X",
        peft_type="X",
        keys={},
        required=frozenset(),
        additive=False,
        low_rank=False,
        invertible="no",
        mixes=frozenset(mixes),
        workspace=2,
    )


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _run(update: Update, base: torch.Tensor, height: int = 3) -> torch.Tensor:
    """As the engine does it: seen first where asked for, then tile by tile."""
    cuts = [slice(start, min(start + height, len(base))) for start in range(0, len(base), height)]
    if isinstance(update, Observing):
        for rows in cuts:
            update.observe(base[rows], rows)
        update.settle()
    out = base.clone()
    for rows in cuts:
        update.accumulate(out[rows], base[rows].clone(), rows)
    return out


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axis", [INPUTS, OUTPUTS])
def test_numbers_along_an_axis_meet_their_elements(axis: str, transposed: bool) -> None:
    """Scaling (outputs, inputs) and then storing it gives what scaling the stored one gives."""
    weight, gain = _numbers(7, 5), _numbers(5 if axis == INPUTS else 7)
    wanted = weight * (gain[None, :] if axis == INPUTS else gain[:, None])
    stored, wanted = (weight.T, wanted.T) if transposed else (weight, wanted)
    view = View(whole(len(stored)), whole(stored.shape[1]), transposed=transposed)
    along = Along(gain, view, axis)
    for rows in (slice(0, 3), slice(3, len(stored))):
        assert torch.equal(stored[rows] * along.over(rows), wanted[rows])


def test_a_part_of_an_axis_takes_its_own_numbers() -> None:
    """A fused layer's adapter on the base's separate ones."""
    view = View(whole(3), whole(5), take_rows=Span(4, 3))
    assert torch.equal(
        Along(torch.arange(9.0), view, OUTPUTS).over(slice(1, 3)).flatten(),
        torch.tensor([5.0, 6.0]),
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize(
    ("mixes", "change"),
    [
        ((INPUTS,), lambda w: w @ _numbers(5, 5)),
        ((OUTPUTS,), lambda w: _numbers(7, 7) @ w),
        ((INPUTS, OUTPUTS), lambda w: w / w.norm() + w.sum()),
    ],
)
def test_a_change_is_made_of_rows_or_of_the_whole(
    mixes: tuple[str, ...], change: Change, weight: float, transposed: bool
) -> None:
    """Whatever is mixed and however the base stores it, f gets (outputs, inputs)."""
    base = _numbers(7, 5)
    wanted = base + weight * (change(base) - base)
    stored = base.T.contiguous() if transposed else base
    view = View(whole(len(stored)), whole(stored.shape[1]), transposed=transposed)
    found = _run(changed(change, _declared(*mixes), view, weight), stored)
    assert torch.allclose(found.T if transposed else found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mixes", [INPUTS, OUTPUTS])
def test_a_gain_scales_what_was_changed(mixes: str, transposed: bool) -> None:
    """One number for each output, by rows and of the whole."""
    base, gains = _numbers(7, 5), _numbers(7, 1)
    wanted = gains * torch.neg(base)
    stored = base.T.contiguous() if transposed else base
    view = View(whole(len(stored)), whole(stored.shape[1]), transposed=transposed)
    gain = Along(gains.flatten(), view, OUTPUTS)
    found = _run(changed(torch.neg, _declared(mixes), view, 1.0, gain), stored)
    assert torch.allclose(found.T if transposed else found, wanted, rtol=1e-12, atol=1e-12)


def test_rows_alone_are_not_kept() -> None:
    """What mixes inputs only needs a tile at a time where outputs are the file's rows."""
    view = View(whole(7), whole(5))
    assert not isinstance(changed(torch.neg, _declared(INPUTS), view, 1.0), Observing)
    turned = View(whole(5), whole(7), transposed=True)
    assert isinstance(changed(torch.neg, _declared(INPUTS), turned, 1.0), Observing)


def test_a_base_that_holds_a_part_of_what_is_mixed_is_refused() -> None:
    """A rotation of all outputs cannot be made on those of q alone; one of inputs can."""
    view = View(whole(3), whole(5), take_rows=Span(4, 3))
    with pytest.raises(MismatchError, match="mixes all outputs"):
        changed(torch.neg, _declared(OUTPUTS), view, 1.0)
    changed(torch.neg, _declared(INPUTS), view, 1.0)
