"""Draws belong to seed, module, adapter and element."""

from __future__ import annotations

import pytest
import torch

from adaptool.combinations.draws import uniform


@pytest.mark.parametrize("rows", [(0, 1), (0, 64), (63, 65), (64, 128), (100, 199), (5, 200)])
def test_rows_are_the_same_in_any_cut(rows: tuple[int, int]) -> None:
    """A piece is the piece of the whole."""
    whole = uniform(3, "m", 1, slice(0, 200), 9)
    assert torch.equal(uniform(3, "m", 1, slice(*rows), 9), whole[slice(*rows)])


def test_every_part_of_the_key_matters() -> None:
    """No two of seed, module and adapter share their numbers, nor do two blocks of rows."""
    rows = slice(0, 64)
    keys = [(0, "m", 0), (1, "m", 0), (0, "n", 0), (0, "m", 1), (0, "m0", 0)]
    drawn = [uniform(seed, name, place, rows, 4) for seed, name, place in keys]
    drawn.append(uniform(0, "m", 0, slice(64, 128), 4))
    for index, one in enumerate(drawn):
        assert not any(bool((one == other).any()) for other in drawn[index + 1 :])


def test_numbers_are_uniform_in_zero_to_one() -> None:
    """Never 1: at full density nothing is dropped."""
    drawn = uniform(0, "m", 0, slice(0, 640), 100)
    assert 0 <= float(drawn.min()) < 1e-3
    assert 0.999 < float(drawn.max()) < 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)


def test_numbers_never_change() -> None:
    """They are part of what a receipt promises: a later version draws the same."""
    found = uniform(42, "layers.0.q_proj", 1, slice(64, 65), 3)
    assert found.tolist() == [[0.9960051550953194, 0.6913911050804954, 0.1280178580386827]]
