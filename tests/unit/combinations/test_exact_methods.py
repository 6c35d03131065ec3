"""cat, svd and linear against the dense matrices they stand for, and against PEFT."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft.tuners.lora.model import LoraModel
from torch import nn

from adaptool.combinations.factor_space import relative_error
from adaptool.combinations.merging import combined
from adaptool.combinations.method import Combined, Factored, Options
from adaptool.errors import MismatchError

OUT, IN = 13, 17


def part(rank: int, weight: float, place: int, scaling: float = 1.0) -> Factored:
    """A random adapter, `scaling` times the factors drawn."""
    generator = torch.Generator().manual_seed(100 + place)
    left = torch.randn(OUT, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, IN, generator=generator, dtype=torch.float64)
    return Factored(scaling * left, right, weight, place, scaling)


def dense(*parts: Factored) -> torch.Tensor:
    """The weighted sum, the long way."""
    total = torch.zeros(OUT, IN, dtype=torch.float64)
    for each in parts:
        total += each.weight * (each.left.double() @ each.right.double())
    return total


def product(found: Combined) -> torch.Tensor:
    return found.left @ found.right


def distance(found: Combined, wanted: torch.Tensor) -> float:
    """The relative error of the factors, measured on the matrix."""
    return float(torch.linalg.norm(product(found) - wanted) / torch.linalg.norm(wanted))


WEIGHTS = [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2), (1.0, -0.7, 2.0), (0.0, 1.5, -1.0)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_cat_is_the_weighted_sum(weights: tuple[float, ...]) -> None:
    """Different ranks, negative weights, weight 0: the sum, exactly, at the sum of the ranks."""
    parts = [part(rank, w, t) for t, (rank, w) in enumerate(zip((2, 4, 3), weights, strict=True))]
    found = combined("cat", parts, Options(), "m")
    torch.testing.assert_close(product(found), dense(*parts), rtol=1e-14, atol=1e-14)
    active = sum(each.right.shape[0] for each in parts if each.weight)
    assert found.left.shape == (OUT, active)
    assert found.exact
    assert found.relative_error == 0


@pytest.mark.parametrize("method", ["cat", "svd"])
@pytest.mark.parametrize("rank", [1, 3, 8, 9, 40])
def test_truncation_meets_the_optimum_and_states_its_error(method: str, rank: int) -> None:
    """No factors of the rank are nearer to the sum (Eckart and Young)."""
    parts = [part(2, 0.5, 0), part(4, -1.0, 1), part(3, 2.0, 2)]
    found = combined(method, parts, Options(rank=rank), "m")
    wanted = dense(*parts)
    values = torch.linalg.svdvals(wanted)
    least = float(torch.linalg.norm(values[rank:]) / torch.linalg.norm(values))
    assert found.left.shape == (OUT, rank)
    assert found.right.shape == (rank, IN)
    assert distance(found, wanted) == pytest.approx(least, abs=1e-14)
    assert found.relative_error == pytest.approx(least, abs=1e-14)
    assert found.exact == (rank >= 9)


def test_factors_in_half_precision_are_summed_in_float64() -> None:
    """The sum of bf16 factors is not rounded to bf16."""
    parts = [
        Factored(each.left.bfloat16(), each.right.bfloat16(), 0.3) for each in (part(2, 1, 0),) * 2
    ]
    found = combined("cat", parts, Options(), "m")
    torch.testing.assert_close(product(found), dense(*parts), rtol=1e-14, atol=1e-14)


def peft_linear(parts: list[Factored]) -> torch.Tensor:
    """B A of PEFT's own function, on a stand-in for its layer."""

    def linear(weight: torch.Tensor) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = weight
        return layer

    target: Any = type("Target", (), {})()
    target.lora_A = {str(each.place): linear(each.right) for each in parts}
    target.lora_B = {str(each.place): linear(each.left / each.scaling) for each in parts}
    target.lora_embedding_A = {}
    target.scaling = {str(each.place): each.scaling for each in parts}
    average: Any = LoraModel._generalized_task_arithmetic_weighted_adapter  # noqa: SLF001
    names, weights = [str(each.place) for each in parts], [each.weight for each in parts]
    right, left = average(None, "linear", names, weights, target, None, "total")
    product: torch.Tensor = left @ right
    return product


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.6, 0.4), (1.0, -0.5), (-1.0, -2.0)])
def test_linear_is_what_peft_makes(weights: tuple[float, float]) -> None:
    """Signs, square roots and scalings as add_weighted_adapter has them."""
    parts = [part(3, weights[0], 0, scaling=2.0), part(3, weights[1], 1, scaling=0.25)]
    found = combined("linear", parts, Options(), "m")
    # PEFT holds its weights in float32.
    torch.testing.assert_close(product(found), peft_linear(parts), rtol=1e-5, atol=1e-6)


def test_linear_reports_its_error_against_the_sum() -> None:
    """The cross terms are no adapter's: what they cost is measured."""
    parts = [part(3, 0.5, 0), part(3, 0.5, 1)]
    found = combined("linear", parts, Options(), "m")
    assert found.left.shape == (OUT, 3)
    assert not found.exact
    assert found.relative_error == pytest.approx(distance(found, dense(*parts)), rel=1e-12)
    assert found.relative_error > 0.1


def test_linear_refuses_factors_of_different_rank() -> None:
    """They cannot be added; an adapter of weight 0 is not there to be added."""
    with pytest.raises(MismatchError, match=r"ranks \[2, 3\]"):
        combined("linear", [part(2, 1, 0), part(3, 1, 1)], Options(), "m")
    combined("linear", [part(2, 0, 0), part(3, 1, 1), part(3, 1, 2)], Options(), "m")


def test_linear_takes_a_scaling_of_zero() -> None:
    """An adapter that does nothing adds nothing, as in PEFT."""
    parts = [part(2, 1.0, 0), part(2, 1.0, 1, scaling=0.0)]
    found = combined("linear", parts, Options(), "m")
    torch.testing.assert_close(product(found), dense(parts[0]))


def test_relative_error_sees_what_squares_cannot() -> None:
    """1e-12 off is 1e-12, and anything is infinitely far from nothing."""
    one = part(3, 1, 0)
    near = (one.left * (1 + 1e-12), one.right)
    assert relative_error((one.left, one.right), near) == pytest.approx(1e-12, rel=1e-2)
    nothing = (torch.zeros_like(one.left), one.right)
    assert relative_error(nothing, nothing) == 0
    assert relative_error(nothing, near) == math.inf
