"""The door of the room: what all methods have in common, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from adaptool.combinations import methods
from adaptool.combinations.merging import check_options, combined
from adaptool.combinations.method import Factored, Options, Space
from adaptool.errors import InputError, MismatchError, UsageError

ALL = sorted(methods())
DENSE = sorted(name for name in ALL if methods()[name].METHOD.takes_density)
OUT, IN, RANK = 12, 9, 3


def part(weight: float, place: int = 0, dtype: torch.dtype = torch.float32) -> Factored:
    """A random adapter."""
    generator = torch.Generator().manual_seed(place)
    left = torch.randn(OUT, RANK, generator=generator).to(dtype)
    return Factored(left, torch.randn(RANK, IN, generator=generator).to(dtype), weight, place)


def delta(one: Factored) -> torch.Tensor:
    return one.weight * (one.left.double() @ one.right.double())


def test_methods_are_those_of_the_contract() -> None:
    """Found by being there."""
    contract = "cat svd linear ties dare_linear dare_ties magnitude_prune della sce tsv iso_c"
    assert set(ALL) == set(contract.split())


@pytest.mark.parametrize("weight", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("method", ALL)
def test_one_adapter_is_returned_as_it_is(method: str, weight: float) -> None:
    """Every method, any weight, full density; adapters of weight 0 do not count."""
    one = part(weight)
    for parts in ([one], [part(0.0, 1), one, part(0.0, 2)]):
        found = combined(method, parts, Options(rank=RANK), "m")
        torch.testing.assert_close(found.left @ found.right, delta(one))
        assert found.relative_error == 0


@pytest.mark.parametrize("method", DENSE)
def test_methods_themselves_return_one_adapter_as_it_is(method: str) -> None:
    """Not only the door: a density just below 1 of a constant delta goes through the method."""
    one = Factored(torch.ones(OUT, 1), torch.ones(1, IN), 1.0, 0)
    found = combined(method, [one], Options(rank=4, density=1 - 1e-12), "m")
    torch.testing.assert_close(found.left @ found.right, delta(one))


@pytest.mark.parametrize("method", ALL)
def test_without_an_active_adapter_the_result_is_zero(method: str) -> None:
    """All weights 0: factors of the rank asked for, all zeros."""
    found = combined(method, [part(0.0), part(0.0, 1)], Options(rank=2), "m")
    assert found.left.shape == (OUT, 2)
    assert not (found.left @ found.right).any()
    assert found.exact


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("rank", [1, 5, 40])
def test_factors_have_the_rank_asked_for(method: str, rank: int) -> None:
    """Below and above what there is, so that all modules have one rank."""
    found = combined(method, [part(1.0), part(0.5, 1)], Options(rank=rank, density=0.8), "m")
    assert found.left.shape == (OUT, rank)
    assert found.right.shape == (rank, IN)
    assert found.left.dtype == torch.float64
    assert bool(found.left.isfinite().all())


@pytest.mark.parametrize("method", ALL)
def test_negating_every_weight_negates_the_result(method: str) -> None:
    """No method prefers a sign."""
    options = Options(rank=IN, density=0.7)
    plus = combined(method, [part(1.0), part(0.5, 1), part(-0.25, 2)], options, "m")
    minus = combined(method, [part(-1.0), part(-0.5, 1), part(0.25, 2)], options, "m")
    torch.testing.assert_close(minus.left @ minus.right, -(plus.left @ plus.right))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della"])
def test_opposite_adapters_elect_nobody(method: str) -> None:
    """D and -D: the sum is 0, and so is the result; PEFT would give plus."""
    one = part(1.0)
    other = Factored(one.left, one.right, -1.0, 0)
    found = combined(method, [one, other], Options(rank=2), "m")
    assert not (found.left @ found.right).any()


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, math.nan])
def test_density_outside_its_range_is_a_usage_error(density: float) -> None:
    """Nothing kept, or more than all."""
    with pytest.raises(UsageError, match="density"):
        combined("ties", [part(1.0)], Options(rank=2, density=density), "m")


@pytest.mark.parametrize("method", ALL)
def test_rank_is_asked_for_where_it_is_needed(method: str) -> None:
    """cat and linear have a rank of their own."""
    if method in {"cat", "linear"}:
        check_options(method, Options())
    else:
        with pytest.raises(UsageError, match="needs a rank"):
            check_options(method, Options())
    with pytest.raises(UsageError, match="below 1"):
        check_options(method, Options(rank=0))


def test_deltas_of_different_shape_are_a_mismatch() -> None:
    """Adapters of different base models."""
    other = Factored(torch.ones(OUT + 1, 1), torch.ones(1, IN), 1.0, 1)
    with pytest.raises(MismatchError, match=r"\(12, 9\), \(13, 9\)") as caught:
        combined("cat", [part(1.0), other], Options(), "layer.q")
    assert caught.value.tensor == "layer.q"


@pytest.mark.parametrize("method", ALL)
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    """Which adapter, and in which module."""
    bad = part(1.0, 1)
    bad.right[1, 2] = math.inf
    with pytest.raises(InputError, match="adapter 2 has values") as caught:
        combined(method, [part(1.0), bad], Options(rank=2), "layer.q")
    assert caught.value.tensor == "layer.q"
    with pytest.raises(UsageError, match="weight nan"):
        combined(method, [part(math.nan), part(1.0, 1)], Options(rank=2), "layer.q")


def test_declarations_say_what_the_methods_use() -> None:
    """What is drawn is seeded; what elects takes a majority; only element-wise ones a density."""
    declared = {name: method.METHOD for name, method in methods().items()}
    assert {n for n, m in declared.items() if m.seeded} == {"dare_linear", "dare_ties", "della"}
    assert {n for n, m in declared.items() if m.takes_majority} == {"ties", "dare_ties", "della"}
    assert {n for n, m in declared.items() if m.space is Space.DELTA} == set(DENSE) - {"sce"}
