"""tsv, iso_c and sce against direct implementations of their papers on dense matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from adaptool.combinations import methods
from adaptool.combinations.merging import combined
from adaptool.combinations.method import Combined, Cores, Factored, Options

OUT, IN = 24, 30
Weights = tuple[float, ...]
WEIGHTS: list[Weights] = [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2), (1.0, -0.7, 2.0)]


def adapters(ranks: tuple[int, ...], weights: Weights) -> list[Factored]:
    """Random adapters of these ranks."""
    generator = torch.Generator().manual_seed(5)
    return [
        Factored(
            torch.randn(OUT, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, IN, generator=generator, dtype=torch.float64),
            weight,
            place,
        )
        for place, (rank, weight) in enumerate(zip(ranks, weights, strict=True))
    ]


def deltas(parts: list[Factored]) -> list[torch.Tensor]:
    """The task vectors, dense."""
    return [each.weight * (each.left @ each.right) for each in parts]


def product(found: Combined) -> torch.Tensor:
    return found.left @ found.right


def polar(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest: torch.Tensor = left @ right
    return nearest


def tsv_of_the_paper(tasks: list[torch.Tensor], ranks: tuple[int, ...]) -> torch.Tensor:
    """Full SVDs, 1/T of the triplets of each, whitened, put together."""
    share = min(OUT, IN) // len(tasks)
    triplets = [torch.linalg.svd(task, full_matrices=False) for task in tasks]
    kept = [min(share, rank) for rank in ranks]
    left = torch.cat([u[:, :k] for (u, _, _), k in zip(triplets, kept, strict=True)], dim=1)
    values = torch.cat([s[:k] for (_, s, _), k in zip(triplets, kept, strict=True)])
    right = torch.cat([v[:k] for (_, _, v), k in zip(triplets, kept, strict=True)], dim=0)
    whole: torch.Tensor = polar(left) @ torch.diag(values) @ polar(right)
    return whole


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("ranks", [(3, 3, 3), (2, 5, 1), (2, 12, 3)])
def test_tsv_is_the_paper_on_full_matrices(ranks: tuple[int, ...], weights: Weights) -> None:
    """Core space loses nothing; a rank above min(out, in) / T is cut to that."""
    parts = adapters(ranks, weights)
    found = combined("tsv", parts, Options(rank=OUT), "m")
    wanted = tsv_of_the_paper(deltas(parts), ranks)
    torch.testing.assert_close(product(found), wanted, rtol=1e-11, atol=1e-11)
    assert found.exact


def test_tsv_of_the_same_adapter_twice_is_that_adapter() -> None:
    """Columns that depend on each other share one direction; nothing arbitrary is added."""
    one = adapters((3,), (1.0,))[0]
    found = combined("tsv", [one, one], Options(rank=6), "m")
    torch.testing.assert_close(product(found), one.left @ one.right)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("ranks", [(3, 3, 3), (2, 5, 1)])
def test_iso_c_is_the_sum_with_equal_singular_values(
    ranks: tuple[int, ...], weights: Weights
) -> None:
    """The paper's formula on the sum's own rank."""
    parts = adapters(ranks, weights)
    found = combined("iso_c", parts, Options(rank=sum(ranks)), "m")
    left, values, right = torch.linalg.svd(sum(deltas(parts)), full_matrices=False)
    r = sum(ranks)
    wanted = values[:r].mean() * left[:, :r] @ right[:r]
    torch.testing.assert_close(product(found), wanted, rtol=1e-11, atol=1e-11)


def test_iso_c_of_full_rank_is_the_papers_mean() -> None:
    """Where the sum has full rank, r is min(out, in), as in the paper."""
    parts = adapters((16, 16), (1.0, 1.0))
    left, values, right = torch.linalg.svd(sum(deltas(parts)), full_matrices=False)
    wanted = values.mean() * left @ right
    found = combined("iso_c", parts, Options(rank=OUT), "m")
    torch.testing.assert_close(product(found), wanted, rtol=1e-11, atol=1e-11)


def test_iso_c_at_a_smaller_rank_keeps_the_strongest_directions() -> None:
    """All strengths are equal afterwards: the order is that of the sum."""
    parts = adapters((3, 3), (1.0, 0.5))
    left, values, right = torch.linalg.svd(sum(deltas(parts)), full_matrices=False)
    found = combined("iso_c", parts, Options(rank=2), "m")
    wanted = values[:6].mean() * left[:, :2] @ right[:2]
    torch.testing.assert_close(product(found), wanted, rtol=1e-11, atol=1e-11)
    assert found.relative_error == pytest.approx((4 / 6) ** 0.5)


def sce_of_the_paper(tasks: list[torch.Tensor], density: float) -> torch.Tensor:
    """Element by element, in Python."""
    m, n = tasks[0].shape
    variance = {}
    for i, j in itertools.product(range(m), range(n)):
        mean = sum(float(task[i, j]) for task in tasks) / len(tasks)
        variance[i, j] = sum((float(task[i, j]) - mean) ** 2 for task in tasks) / len(tasks)
    chosen = sorted(variance, key=lambda at: -variance[at])[: int(density * m * n)]
    selected = [{at: float(task[at]) for at in chosen} for task in tasks]
    energy = [sum(value**2 for value in task.values()) for task in selected]
    merged = torch.zeros(m, n, dtype=torch.float64)
    for at in chosen:
        total = sum(task[at] for task in selected)
        for task, eta in zip(selected, energy, strict=True):
            if task[at] * total > 0:
                merged[at] += eta / sum(energy) * task[at]
    return merged


@pytest.mark.parametrize("density", [1.0, 0.6, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_sce_is_the_paper_on_cores(weights: Weights, density: float) -> None:
    """Select, calculate and erase on the matrices it is given."""
    generator = torch.Generator().manual_seed(8)
    matrices = [torch.randn(6, 7, generator=generator, dtype=torch.float64) for _ in weights]
    cores = Cores(tuple(matrices), weights, (OUT, IN))
    found = methods()["sce"].merge(cores, Options(density=density))  # type: ignore[union-attr]
    tasks = [w * each for w, each in zip(weights, matrices, strict=True)]
    wanted = sce_of_the_paper(tasks, density)
    merged = (found.left * found.values) @ found.right
    torch.testing.assert_close(merged, wanted, rtol=1e-12, atol=1e-12)


def reference_core_space(parts: list[Factored], density: float) -> torch.Tensor:
    """SCE in core space as its paper sets it up, on balanced factors."""
    lefts, rights = [], []
    for each in parts:
        u, s, v = torch.linalg.svd(each.left @ each.right, full_matrices=False)
        rank = each.right.shape[0]
        lefts.append(u[:, :rank] * s[:rank].sqrt())
        rights.append(s[:rank].sqrt()[:, None] * v[:rank])
    u_b = torch.linalg.svd(torch.cat(lefts, dim=1), full_matrices=False).U
    v_a = torch.linalg.svd(torch.cat(rights, dim=0), full_matrices=False).Vh
    cores = [u_b.T @ task @ v_a.T for task in deltas(parts)]
    whole: torch.Tensor = u_b @ sce_of_the_paper(cores, density) @ v_a
    return whole


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_sce_takes_the_bases_of_core_space(density: float) -> None:
    """The whole way, from factors to factors."""
    parts = adapters((2, 3, 2), (1.0, 0.5, -1.0))
    found = combined("sce", parts, Options(rank=7, density=density), "m")
    wanted = reference_core_space(parts, density)
    torch.testing.assert_close(product(found), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["sce", "tsv", "iso_c"])
def test_result_is_a_function_of_the_deltas(method: str) -> None:
    """Neither the order of the adapters nor how a delta is split into factors matters."""
    parts = adapters((2, 3, 2), (1.0, 0.5, -1.0))
    first = combined(method, parts, Options(rank=7, density=0.5), "m")
    mixed = torch.tensor([[1.0, 4.0, 0.0], [0.0, 0.1, 2.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    other = Factored(parts[1].left @ mixed, torch.linalg.inv(mixed) @ parts[1].right, 0.5, 1)
    second = combined(method, [other, parts[2], parts[0]], Options(rank=7, density=0.5), "m")
    torch.testing.assert_close(product(first), product(second), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["sce", "tsv", "iso_c"])
@pytest.mark.parametrize("rank", [1, 4])
def test_truncation_states_its_error(method: str, rank: int) -> None:
    """The error of the factors against what the method defines."""
    parts = adapters((2, 3, 2), (1.0, 0.5, -1.0))
    whole = product(combined(method, parts, Options(rank=7), "m"))
    found = combined(method, parts, Options(rank=rank), "m")
    error = torch.linalg.norm(product(found) - whole) / torch.linalg.norm(whole)
    assert found.relative_error == pytest.approx(float(error), rel=1e-9)
    values = torch.linalg.svdvals(whole)
    least = torch.linalg.norm(values[rank:]) / torch.linalg.norm(values)
    assert found.relative_error == pytest.approx(float(least), rel=1e-9)
    assert not found.exact


@pytest.mark.parametrize("method", ["sce", "tsv", "iso_c"])
def test_rank_deficient_and_zero_adapters_are_taken(method: str) -> None:
    """A factor of zeros (an untrained B) adds no direction."""
    first, second = adapters((3, 3), (1.0, 1.0))
    second.left[:, 2] = second.left[:, 1]
    zero = Factored(torch.zeros(OUT, 2), torch.randn(2, IN), 1.0, 2)
    found = combined(method, [first, second, zero], Options(rank=8), "m")
    assert bool(product(found).isfinite().all())
    assert int(torch.linalg.matrix_rank(product(found))) <= 5
    nothing = combined(method, [zero, zero], Options(rank=2), "m")
    assert not product(nothing).any()
    assert nothing.relative_error == 0


def test_core_keeps_opposite_adapters_apart() -> None:
    """D and -D sum to nothing, whatever rounding makes of it."""
    one = adapters((3,), (1.0,))[0]
    other = Factored(one.left, one.right, -1.0, 1)
    found = combined("iso_c", [one, other], Options(rank=3), "m")
    assert float(product(found).abs().max()) < 1e-12
