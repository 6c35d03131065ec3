"""convert --as lora --base over every tuner: what has no factors becomes a LoRA of its base."""

from __future__ import annotations

from pathlib import Path

import pytest

import adaptool
from adaptool.errors import AdaptoolError
from golden_cases import tensors_of
from tuner_cases import Case, cases, make

# A delta of a bias is no LoRA of a weight; an initialisation that changed W has its own way.
REFUSALS = {"unsupported", "init-changed-base", "not-low-rank"}
# Larger than any side: nothing is cut.
RANK = 1 << 20


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_at_full_rank_it_merges_to_the_same_model_or_is_refused(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the tuner does to W: f(W) - W is then all there."""
    pair = make(case, tmp_path_factory.getbasetemp())
    out = tmp_path / "out"
    try:
        result = adaptool.convert(pair.adapter, out, to="lora", base=pair.base, rank=RANK)
    except AdaptoolError as error:
        assert error.exit_code == 4  # noqa: PT017 - a refusal has a code that is checked
        assert str(error.code) in REFUSALS  # noqa: PT017
        assert not out.exists()
        return
    assert result.relative_error is None or result.relative_error < 1e-7
    wanted = pair.merged(tmp_path / "a")
    adaptool.merge(pair.base, out, tmp_path / "b")
    found = tensors_of(tmp_path / "b")
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        difference = (value.double() - found[name].double()).norm()
        assert difference <= 2e-6 * value.double().norm() + 1e-12, name
