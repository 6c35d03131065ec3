"""ties, magnitude_prune, dare_* and della against their papers and against PEFT's functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from peft.utils import merge_utils

from adaptool.combinations import methods
from adaptool.combinations.della import keep_probabilities
from adaptool.combinations.delta_space import MergedTiles, ProductDeltas
from adaptool.combinations.draws import uniform
from adaptool.combinations.merging import combined
from adaptool.combinations.method import DeltaMethod, Factored, Majority, Options

OUT, IN = 150, 40
Weights = tuple[float, ...]
WEIGHTS: list[Weights] = [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2), (1.0, -0.7, 2.0), (1.5, -1.0)]
DELTA_METHODS = ["ties", "magnitude_prune", "dare_linear", "dare_ties", "della"]


def adapters(weights: Weights) -> list[Factored]:
    """Random adapters of ranks 2, 3, ..."""
    generator = torch.Generator().manual_seed(11)
    return [
        Factored(
            torch.randn(OUT, place + 2, generator=generator, dtype=torch.float64),
            torch.randn(place + 2, IN, generator=generator, dtype=torch.float64),
            weight,
            place,
        )
        for place, weight in enumerate(weights)
    ]


def dense(parts: list[Factored]) -> list[torch.Tensor]:
    """The unweighted deltas."""
    return [each.left @ each.right for each in parts]


def merged(method: str, parts: list[Factored], options: Options, height: int = 64) -> torch.Tensor:
    """The merged matrix itself, before any truncation."""
    deltas = ProductDeltas("layer.q_proj", tuple(parts), height)
    rule = cast("DeltaMethod", methods()[method]).rule(deltas, options)
    return torch.cat([tile for _, tile in MergedTiles(deltas, rule)()])


def draws(part: Factored, seed: int = 0) -> torch.Tensor:
    return uniform(seed, "layer.q_proj", part.place, slice(0, OUT), IN)


def top(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The largest elements by a full sort."""
    flat = delta.flatten()
    order = flat.abs().argsort(descending=True)[: int(density * flat.numel())]
    kept = torch.zeros_like(flat)
    kept[order] = flat[order]
    return kept.view_as(delta)


def elected_mean(tasks: list[torch.Tensor], majority: str) -> torch.Tensor:
    """Steps 2 and 3 of TIES, element by element in Python."""
    found = torch.zeros_like(tasks[0])
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            values = [float(task[i, j]) for task in tasks]
            total = sum(values)
            if majority == "frequency":
                votes = sum((value > 0) - (value < 0) for value in values)
                total = votes or total
            same = [value for value in values if value * total > 0]
            found[i, j] = sum(same) / len(same) if same else 0.0
    return found


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.07])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties_is_the_paper(weights: Weights, density: float, majority: str) -> None:
    """Trim each delta, elect among the weighted ones, average those that agree."""
    parts = adapters(weights)
    tasks = [w * top(d, density) for w, d in zip(weights, dense(parts), strict=True)]
    found = merged("ties", parts, Options(density=density, majority=Majority(majority)))
    torch.testing.assert_close(found, elected_mean(tasks, majority))


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.5, 0.2])
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_ties_is_pefts_where_weights_are_equal(
    weight: float, density: float, majority: Any
) -> None:
    """PEFT elects before it weighs, which is the same for equal positive weights.

    Three adapters, of which one or two keep an element: even votes are left out, because PEFT
    elects plus there.
    """
    parts = adapters((weight,) * 3)
    weights = torch.full((3,), weight, dtype=torch.float64)
    wanted = merge_utils.ties(dense(parts), weights, density, majority)
    found = merged("ties", parts, Options(density=density, majority=Majority(majority)))
    kept = torch.stack([top(each, density) for each in dense(parts)])
    even = (kept.sign().sum(0) == 0) if majority == "frequency" else torch.zeros_like(found) > 0
    torch.testing.assert_close(found[~even], wanted[~even])


@pytest.mark.parametrize("density", [0.9, 0.5, 0.013])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_magnitude_prune_is_pefts(weights: Weights, density: float) -> None:
    """PEFT's function on the deltas, as its magnitude_prune_svd calls it."""
    parts = adapters(weights)
    wanted = merge_utils.magnitude_prune(
        dense(parts), torch.tensor(weights, dtype=torch.float64), density
    )
    found = merged("magnitude_prune", parts, Options(density=density))
    torch.testing.assert_close(found, wanted)


@pytest.fixture
def our_draws(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """PEFT's Bernoulli masks come from this list, one after the other."""
    uniforms: list[torch.Tensor] = []

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        return (uniforms.pop(0) < probabilities).to(probabilities.dtype)

    monkeypatch.setattr(merge_utils.torch, "bernoulli", bernoulli)
    return uniforms


@pytest.mark.parametrize("density", [0.9, 0.3])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dare_linear_is_pefts_with_the_same_masks(
    weights: Weights, density: float, our_draws: list[torch.Tensor]
) -> None:
    """Drop, divide by the density, weigh, add."""
    parts = adapters(weights)
    our_draws.extend(draws(each) for each in parts)
    wanted = merge_utils.dare_linear(
        dense(parts), torch.tensor(weights, dtype=torch.float64), density
    )
    found = merged("dare_linear", parts, Options(density=density))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("density", [0.9, 0.3])
def test_dare_ties_is_pefts_with_the_same_masks(
    density: float, our_draws: list[torch.Tensor]
) -> None:
    """For equal weights, where PEFT's election is the paper's."""
    parts = adapters((1.0, 1.0, 1.0))
    our_draws.extend(draws(each) for each in parts)
    wanted = merge_utils.dare_ties(dense(parts), torch.ones(3), density, "total")
    found = merged("dare_ties", parts, Options(density=density))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dare_ties_is_the_paper(weights: Weights, majority: str) -> None:
    """Also for unequal and negative weights."""
    parts = adapters(weights)
    tasks = [
        each.weight * delta * (draws(each, 3) < 0.4) / 0.4
        for each, delta in zip(parts, dense(parts), strict=True)
    ]
    options = Options(density=0.4, seed=3, majority=Majority(majority))
    torch.testing.assert_close(merged("dare_ties", parts, options), elected_mean(tasks, majority))


def magprune(delta: torch.Tensor, drawn: torch.Tensor, density: float) -> torch.Tensor:
    """MAGPRUNE of the DELLA paper, row by row in Python."""
    found = torch.zeros_like(delta)
    p = 1 - density
    epsilon = min(p, 1 - p)
    for i, row in enumerate(delta.tolist()):
        order = sorted(range(len(row)), key=lambda j: -abs(row[j]))
        for rank, j in enumerate(order):
            drop = p - epsilon / 2 + epsilon / len(row) * rank
            if float(drawn[i, j]) < 1 - drop:
                found[i, j] = row[j] / (1 - drop)
    return found


@pytest.mark.parametrize("density", [0.8, 0.3])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_della_is_the_paper(weights: Weights, density: float) -> None:
    """Ranks inside rows, drop probabilities by rank, then elect and fuse."""
    parts = adapters(weights)
    tasks = [
        each.weight * magprune(delta, draws(each), density)
        for each, delta in zip(parts, dense(parts), strict=True)
    ]
    found = merged("della", parts, Options(density=density))
    torch.testing.assert_close(found, elected_mean(tasks, "total"))


@pytest.mark.parametrize("density", [0.99, 0.5, 0.01])
def test_della_keeps_large_elements_more_often(density: float) -> None:
    """Probabilities fall with the rank, average to the density, and stay above half of it."""
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    delta = torch.linspace(-1, 2**0.5, 1000, dtype=torch.float64)[order].expand(5, 1000).clone()
    keep = keep_probabilities(delta, density)
    by_magnitude = keep.gather(1, delta.abs().argsort(dim=1, descending=True))
    assert bool((by_magnitude.diff(dim=1) < 0).all())
    assert float(keep.mean()) == pytest.approx(density, abs=1e-3)
    assert float(keep.min()) >= density / 2
    assert float(keep.max()) <= 1


@pytest.mark.parametrize("method", DELTA_METHODS)
@pytest.mark.parametrize("density", [1.0, 0.37])
def test_tile_height_does_not_matter(method: str, density: float) -> None:
    """Thresholds, ranks and draws are those of the whole matrix."""
    parts = adapters((1.0, -0.5, 0.8))
    options = Options(density=density, seed=5)
    whole = merged(method, parts, options, height=OUT)
    for height in (1, 7, 64, 100, 128):
        found = merged(method, parts, options, height=height)
        torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_draws_follow_seed_module_and_adapter(method: str) -> None:
    """Same seed, same result; another seed, module or place, another."""
    parts = adapters((1.0, 1.0))
    options = Options(density=0.5, seed=1, rank=4)
    first = combined(method, parts, options, "a")
    state = torch.random.get_rng_state()
    assert torch.equal(first.left, combined(method, parts, options, "a").left)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = Options(density=0.5, seed=2, rank=4)
    assert not torch.equal(first.left, combined(method, parts, other, "a").left)
    assert not torch.equal(first.left, combined(method, parts, options, "b").left)
    moved = [Factored(each.left, each.right, 1.0, each.place + 1) for each in parts]
    assert not torch.equal(first.left, combined(method, moved, options, "a").left)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_an_adapter_of_weight_zero_does_not_change_the_draws_of_others(method: str) -> None:
    """Places are those of the caller's list, with the inactive ones in it."""
    first, second, third = adapters((1.0, 0.0, 1.0))
    options = Options(density=0.5, rank=4)
    with_it = combined(method, [first, second, third], options, "m")
    without = combined(method, [first, third], options, "m")
    assert torch.equal(with_it.left, without.left)


def test_dropping_keeps_the_expectation() -> None:
    """Over many seeds the mean of what DARE and MAGPRUNE make of one delta is the delta."""
    part = Factored(torch.ones(64, 1), torch.linspace(1, 2, 30)[None], 1.0, 0)
    for method in ("dare_linear", "della"):
        found = [merged(method, [part], Options(density=0.5, seed=seed)) for seed in range(40)]
        mean = torch.stack(found).mean(dim=(0, 1))
        torch.testing.assert_close(mean, part.right[0].double(), rtol=0.15, atol=0)


@pytest.mark.parametrize("method", DELTA_METHODS)
@pytest.mark.parametrize("rank", [3, IN])
def test_factors_are_the_best_of_the_merged_matrix(method: str, rank: int) -> None:
    """What combined() gives is the truncated SVD of what the method defines, and its error."""
    parts = adapters((1.0, 0.5))
    options = Options(density=0.4, rank=rank)
    wanted = merged(method, parts, options)
    found = combined(method, parts, options, "layer.q_proj")
    values = torch.linalg.svdvals(wanted)
    least = float(torch.linalg.norm(values[rank:]) / torch.linalg.norm(values))
    error = torch.linalg.norm(found.left @ found.right - wanted) / torch.linalg.norm(wanted)
    assert float(error) == pytest.approx(least, abs=1e-12)
    assert found.relative_error == pytest.approx(least, abs=1e-12)


def test_large_deltas_are_made_again_in_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit nothing of the size of the matrix is kept, and the result is the same."""
    from adaptool.combinations import delta_space

    parts = adapters((1.0, 0.5))
    options = Options(density=0.4, rank=3)
    held = combined("della", parts, options, "m")
    passes: list[int] = []
    tiles = ProductDeltas.tiles

    def counted(self: ProductDeltas) -> Iterator[Any]:
        passes.append(1)
        return tiles(self)

    monkeypatch.setattr(ProductDeltas, "tiles", counted)
    monkeypatch.setattr(delta_space, "_HELD_ELEMENTS", 0)
    again = combined("della", parts, options, "m")
    assert len(passes) == 2
    torch.testing.assert_close(again.left @ again.right, held.left @ held.right)
