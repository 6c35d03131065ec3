"""Merges of adapters that PEFT trained, against PEFT's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import adaptool
import golden_cases
from golden_cases import CASES, Case, Made, Tensors, load, peft_merged, tensors_of
from rounding import nearest, steps
from tiny_models import answer

SINGLE = [case for case in CASES if case.dtype is torch.float32]
HALF = [case for case in CASES if case.dtype is not torch.float32]
MERGED = [case for case in CASES if case.peft_merges]


def _name(case: Case) -> str:
    return case.name


def _made(case: Case, factory: pytest.TempPathFactory) -> Made:
    return golden_cases.make(case, factory.getbasetemp())


def _merge(made: Made, out: Path, **options: object) -> Tensors:
    adaptool.merge(made.base, made.adapter, out, **options)
    return tensors_of(out)


def _check_names(made: Made, ours: Tensors, theirs: Tensors) -> None:
    """The same tensors; what only another head of the base's has stays as it was."""
    extra = set(ours) - set(theirs)
    if made.case.trained_on is not None:
        base = tensors_of(made.base)
        extra = {name for name in extra if not torch.equal(ours[name], base[name])}
    assert extra == set()
    assert set(theirs) - set(ours) == set()
    assert {name: ours[name].shape for name in theirs} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


@pytest.mark.parametrize("case", MERGED, ids=_name)
def test_merge_is_the_exact_result_rounded_once(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT merging in float64 gives the exact values; ours are those, rounded to nearest even."""
    made = _made(case, tmp_path_factory)
    ours = _merge(made, tmp_path / "out")
    exact = peft_merged(made, tmp_path / "peft", torch.float64)
    _check_names(made, ours, exact)
    different = [
        name
        for name, value in exact.items()
        if not torch.equal(nearest(value, ours[name].dtype), ours[name])
    ]
    assert different == []


@pytest.mark.parametrize("case", [case for case in MERGED if case in SINGLE], ids=_name)
def test_merge_agrees_with_peft_to_float32_rounding(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every tensor within 1e-6 of PEFT's, and with float32 arithmetic its very bits."""
    made = _made(case, tmp_path_factory)
    theirs = peft_merged(made, tmp_path / "peft")
    ours = _merge(made, tmp_path / "out")
    _check_names(made, ours, theirs)
    errors = {
        name: float((ours[name] - value).double().norm() / value.double().norm())
        for name, value in theirs.items()
    }
    assert {name: error for name, error in errors.items() if not error <= 1e-6} == {}
    single = _merge(made, tmp_path / "single", precision="float32")
    if case.exact:
        different = [name for name in theirs if not torch.equal(single[name], theirs[name])]
        assert different == []


@pytest.mark.parametrize("case", [case for case in HALF if case.exact], ids=_name)
def test_half_precision_merge_is_within_one_step_of_peft(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One step of the dtype at most, and only where PEFT's float32 sum lay beside a middle.

    That is one element in about 2^24 / 2^9 for bfloat16, 2^24 / 2^12 for float16.
    """
    made = _made(case, tmp_path_factory)
    theirs = peft_merged(made, tmp_path / "peft")
    ours = _merge(made, tmp_path / "out")
    _check_names(made, ours, theirs)
    distances = {name: steps(ours[name], value) for name, value in theirs.items()}
    assert max(int(distance.max()) for distance in distances.values()) <= 1
    moved = sum(int((distance > 0).sum()) for distance in distances.values())
    share = 2e-4 if case.dtype is torch.bfloat16 else 1e-3
    assert moved <= share * sum(distance.numel() for distance in distances.values())
    single = _merge(made, tmp_path / "single", precision="float32")
    assert [name for name in theirs if not torch.equal(single[name], theirs[name])] == []


@pytest.mark.parametrize("case", [case for case in HALF if not case.exact], ids=_name)
def test_half_precision_merge_is_near_peft_where_peft_rounds_twice(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT rounds the delta, then the sum: a step of the larger of base and result."""
    made = _made(case, tmp_path_factory)
    theirs = peft_merged(made, tmp_path / "peft")
    ours = _merge(made, tmp_path / "out")
    _check_names(made, ours, theirs)
    base = tensors_of(made.base)
    for name, value in theirs.items():
        size = base[name].double().abs() + value.double().abs()
        step = torch.finfo(case.dtype).eps * size
        assert bool(((ours[name].double() - value.double()).abs() <= step).all()), name


@pytest.mark.parametrize("case", SINGLE, ids=_name)
def test_merged_model_answers_as_the_adapted_one(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What transformers loads from the output computes what PEFT's unmerged model computes."""
    made = _made(case, tmp_path_factory)
    _merge(made, tmp_path / "out")
    name = case.trained_on or case.model
    found = answer(load(name, tmp_path / "out"), name)
    torch.testing.assert_close(found, made.truth, rtol=1e-5, atol=1e-5)
    base = answer(load(name, made.base), name)[..., : found.shape[-1]]
    assert float((base - found[..., : base.shape[-1]]).norm() / base.norm()) > 1e-3
