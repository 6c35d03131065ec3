"""What 16-bit storage did to the deltas, over 32 rows a tensor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptool.engine.sampling import RUN_ROWS, RUNS, Sampling, sampled
from plan_rows import computed


@given(count=st.integers(1, 300), height=st.integers(1, 320))
def test_rows_do_not_depend_on_tiles(count: int, height: int) -> None:
    """Whatever the tiles, the same rows: all of a small tensor, 32 at most of a large one."""
    row = computed((count, 4))
    found = [
        index
        for start in range(0, count, height)
        for index in sampled(row, start, min(count, start + height))
    ]
    assert found == sampled(row, 0, count)
    most = RUNS * RUN_ROWS
    assert len(found) == min(count, most)
    assert len(set(found)) == len(found)


def test_rows_are_spread_evenly() -> None:
    """No part of a tensor is left out: runs of eight rows begin a quarter of it apart."""
    found = sampled(computed((3200, 4)), 0, 3200)
    begins = found[::RUN_ROWS]
    assert begins == [0, 800, 1600, 2400]
    steps = {right - left for left, right in itertools.pairwise(found)}
    assert steps == {1, 800 - RUN_ROWS + 1}


def _matrices(seed: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=draw).bfloat16().double()
    out = base + 0.003 * torch.randn(shape, generator=draw).double()
    return base, out, out.bfloat16()


def _taken(order: list[int], height: int) -> Sampling:
    sampling = Sampling()
    rows = [computed((100, 16), name=str(place)) for place in range(3)]
    for place in order:
        base, out, stored = _matrices(place, (100, 16))
        for start in range(0, 100, height):
            tile = slice(start, start + height)
            sampling.take(rows[place], start, base[tile], out[tile], stored[tile])
    return sampling


def test_figures_are_those_of_the_sampled_rows() -> None:
    """Against numpy: the share of changed elements, and how much of the delta is stored."""
    rows = [computed((100, 16), name=str(place)) for place in range(3)]
    found = _taken([0, 1, 2], 100).stats(rows)
    changed = total = 0
    kept = delta = 0.0
    for place in range(3):
        base, out, stored = (each.double().numpy() for each in _matrices(place, (100, 16)))
        picked = [first + index for first in (0, 25, 50, 75) for index in range(8)]
        changed += int((base[picked] != stored[picked]).sum())
        total += 32 * 16
        difference = (out - base)[picked]
        kept += float(np.sum((stored - base)[picked] * difference))
        delta += float(np.sum(difference**2))
    assert found.changed_fraction == pytest.approx(changed / total, rel=1e-5)
    assert found.retained == pytest.approx(kept / delta, rel=1e-5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("height", [1, 7, 64])
def test_figures_do_not_depend_on_who_came_first(order: list[int], height: int) -> None:
    """Exactly the same numbers for any order of tiles and tensors."""
    rows = [computed((100, 16), name=str(place)) for place in range(3)]
    assert _taken(list(order), height).stats(rows) == _taken([0, 1, 2], 100).stats(rows)


def test_nothing_sampled_is_no_figure() -> None:
    """Not zero: nothing was touched."""
    found = Sampling().stats([])
    assert (found.changed_fraction, found.retained) == (None, None)


def test_delta_of_zeros_keeps_nothing_to_speak_of() -> None:
    """An untrained adapter changes no element, and a share of nothing is no number."""
    sampling, row = Sampling(), computed((2, 4))
    base = torch.ones(2, 4, dtype=torch.float64)
    sampling.take(row, 0, base, base.clone(), base.bfloat16())
    found = sampling.stats([row])
    assert (found.changed_fraction, found.retained) == (0.0, None)
