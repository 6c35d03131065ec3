"""Keys that tuners declare: plain ones, and those with a number in them."""

from __future__ import annotations

import pytest

from adaptool.model.tuner import INPUTS, OUTPUTS, Declaration, role_of
from adaptool.model.view import View, whole

KEYS = {"x_A.weight": "A", "x_encoders.{}.weight": "encoder.{}"}


def _declared(*mixes: str, workspace: int = 3) -> Declaration:
    return Declaration(
        title="X",
        peft_type="X",
        keys=KEYS,
        shared={"x_bank.{}": "bank.{}"},
        required=frozenset(),
        additive=False,
        low_rank=False,
        invertible="no",
        mixes=frozenset(mixes),
        workspace=workspace,
    )


@pytest.mark.parametrize(
    ("ending", "role"),
    [
        ("x_A.weight", "A"),
        ("x_encoders.0.weight", "encoder.0"),
        ("x_encoders.12.weight", "encoder.12"),
        ("x_encoders.a.b.weight", None),
        ("x_encoders.weight", None),
        ("x_A_weight", None),
    ],
)
def test_a_pattern_takes_one_part_of_the_name(ending: str, role: str | None) -> None:
    """The part that stands for {} becomes a part of the role."""
    assert role_of(KEYS, ending) == role


@pytest.mark.parametrize(
    ("role", "known"),
    [("A", True), ("encoder.3", True), ("bank.q", True), ("encoder", False), ("x", False)],
)
def test_a_tuner_knows_the_roles_of_its_keys(role: str, known: bool) -> None:
    """Own and shared ones, with any number."""
    assert _declared().knows(role) is known


@pytest.mark.parametrize(
    ("mixes", "plain", "transposed", "tile"),
    [
        ((), 0, 0, "any"),
        ((INPUTS,), 0, 3 * 8 * 20, "rows"),
        ((OUTPUTS,), 3 * 8 * 20, 0, "whole"),
        ((INPUTS, OUTPUTS), 3 * 8 * 20, 3 * 8 * 20, "whole"),
    ],
)
def test_memory_is_needed_where_rows_of_the_file_are_mixed(
    mixes: tuple[str, ...], plain: int, transposed: int, tile: str
) -> None:
    """Conv1D stores inputs as rows, so it is the other way round there."""
    declared = _declared(*mixes)
    assert declared.bytes_needed(View(whole(4), whole(5))) == plain
    assert declared.bytes_needed(View(whole(4), whole(5), transposed=True)) == transposed
    assert declared.tile == tile
