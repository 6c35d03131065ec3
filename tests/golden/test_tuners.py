"""Every tuner's examples against PEFT, in float32 and in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

import tuner_cases
from golden_cases import Tensors, load, quietly, tensors_of
from rounding import nearest, steps
from tiny_models import inputs_for
from tuner_cases import Case, Pair, make, mended, peft_merged

RELATIVE = 2e-5
every_case = tuner_cases.every_case(elsewhere=False)


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    error = (ours.double() - theirs.double()).norm()
    return float(error / theirs.double().norm().clamp_min(1e-30))


def _exact(pair: Pair) -> Tensors:
    return peft_merged(pair, torch.float32 if pair.case.example.loose else torch.float64)


@every_case
def test_merge_agrees_with_peft(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every tensor within 2e-5 of PEFT's, some of them changed."""
    pair = make(case, tmp_path_factory.getbasetemp())
    ours = pair.merged(tmp_path / "out")
    base = tensors_of(pair.base)
    assert any(not torch.equal(ours[name], base[name]) for name in base)
    if case.example.truth == "forward":
        _check_forward(pair, tmp_path / "out")
        return
    theirs = _exact(pair)
    assert set(ours) == set(theirs)
    errors = {name: _relative(ours[name], value) for name, value in theirs.items()}
    assert {name: error for name, error in errors.items() if not error <= RELATIVE} == {}
    single = pair.merged(tmp_path / "single", precision="float32")
    errors = {name: _relative(single[name], value) for name, value in theirs.items()}
    assert {name: error for name, error in errors.items() if not error <= RELATIVE} == {}


@every_case
def test_bfloat16_is_within_a_step_of_the_correctly_rounded_result(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT's merge in float64, rounded once, is at most one bfloat16 away."""
    pair = make(case, tmp_path_factory.getbasetemp(), torch.bfloat16)
    ours = pair.merged(tmp_path / "out")
    if case.example.truth == "forward":
        return
    theirs = _exact(pair)
    furthest = {
        name: _furthest(ours[name], value, loose=case.example.loose)
        for name, value in theirs.items()
        if value.numel()
    }
    assert {name: count for name, count in furthest.items() if count > 1} == {}


def _furthest(ours: torch.Tensor, theirs: torch.Tensor, *, loose: bool) -> int:
    """Steps of bfloat16 between the two.

    Where PEFT computes in float32 an element that nearly cancels has the digits of the tensor's
    largest, which its own steps are finer than.
    """
    apart = steps(ours, nearest(theirs.double(), torch.bfloat16))
    if loose:
        error = (ours.double() - theirs.double()).abs()
        apart = apart[error > 1e-6 * theirs.double().abs().max()]
    return int(apart.max()) if apart.numel() else 0


def _check_forward(pair: Pair, out: Path) -> None:
    """The merged model computes what the adapted one does, in float64."""
    example = pair.case.example
    with quietly(), mended():
        merged = load(example.model, out, torch.float64)
        base = load(example.model, pair.base, torch.float64)
        tuned = PeftModel.from_pretrained(base, pair.reference, autocast_adapter_dtype=False)
        tuned = tuned.to(torch.float64).eval()
        error = _relative(_answer(merged, example.model), _answer(tuned, example.model))
    assert error <= RELATIVE


def _answer(model: torch.nn.Module, name: str) -> torch.Tensor:
    given = inputs_for(name)
    doubles = {
        key: value.double() if value.is_floating_point() else value for key, value in given.items()
    }
    with torch.inference_mode():
        found = model(**doubles)
    return found if isinstance(found, torch.Tensor) else found.logits
