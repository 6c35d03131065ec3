"""Tensors that are needed whole are let in as far as there is memory for them."""

from __future__ import annotations

import pytest

from adaptool.engine import admission
from adaptool.errors import ResourceError
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.plan import Piece, Row
from adaptool.model.tuner import Declaration
from adaptool.model.view import View, whole
from adaptool.tuners import tuners
from memory_source import MemorySource
from plan_rows import placed, row

NEEDED = 2 * 8 * 40 * 50


def _row(tuner: str) -> Row:
    source = placed(MemorySource(b""), "BF16", (40, 50), name=f"{tuner}.weight")
    delta = Delta("m", "m.weight", tuner, {}, Terms(Form.LINEAR, 40, 50, 1.0))
    return row(source, pieces=(Piece(0, delta, View(whole(40), whole(50)), 1.0),))


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The memory that may be used."""
    monkeypatch.setattr(admission, "memory_budget", lambda: request.param)


def test_pissa_declares_two_matrices() -> None:
    """What the numbers of this file are made of."""
    declared: Declaration = tuners()["pissa"].DECLARATION
    assert admission.needed(_row("pissa")) == NEEDED
    assert declared.workspace == 2


@pytest.mark.parametrize(
    ("budget", "threads"), [(10 * NEEDED, 4), (3 * NEEDED, 3), (NEEDED, 1)], indirect=["budget"]
)
@pytest.mark.usefixtures("budget")
def test_as_many_threads_work_as_hold_a_tensor_each(threads: int) -> None:
    """Four where there is memory for them, one where there is memory for one."""
    assert admission.admitted([_row("lora"), _row("pissa")], 4) == threads


@pytest.mark.parametrize("budget", [NEEDED - 1], indirect=True)
@pytest.mark.usefixtures("budget")
def test_a_tensor_that_fits_no_memory_is_refused_with_the_numbers() -> None:
    """Exit 7 before anything is read, naming the tensor."""
    with pytest.raises(ResourceError) as caught:
        admission.admitted([_row("lora"), _row("pissa")], 4)
    assert caught.value.exit_code == 7
    assert caught.value.tensor == "pissa.weight"
    assert f"{NEEDED} bytes" in str(caught.value)
    assert str(NEEDED - 1) in str(caught.value)


@pytest.mark.parametrize("budget", [0], indirect=True)
@pytest.mark.usefixtures("budget")
def test_what_is_computed_by_tiles_needs_nothing() -> None:
    """LoRA merges on a machine of any size."""
    assert admission.admitted([_row("lora")], 4) == 4


def test_the_budget_is_a_part_of_the_machine() -> None:
    """Not zero, and within what is there."""
    assert 2**20 < admission.memory_budget() < 2**50
