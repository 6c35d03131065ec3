"""convert and combine with --base over every tuner: deltas and sizes that only the base tells."""

from __future__ import annotations

from pathlib import Path

import pytest

import adaptool
from adaptool.errors import AdaptoolError
from golden_cases import tensors_of
from tuner_cases import Case, Pair, every_case, make

# A delta of a bias is no LoRA of a weight; an initialisation that changed W has its own way.
REFUSALS = {"unsupported", "init-changed-base", "not-low-rank"}
# Larger than any side: nothing is cut.
RANK = 1 << 20


@every_case()
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
    _check(pair, out, tmp_path)


@pytest.mark.slow
@every_case()
def test_summed_with_nothing_it_is_itself_or_is_refused(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The exact sum of one: a product of factors, once the base has told its sizes."""
    pair = make(case, tmp_path_factory.getbasetemp())
    out = tmp_path / "out"
    try:
        result = adaptool.combine(pair.adapter, out=out, base=pair.base)
    except AdaptoolError as error:
        assert error.exit_code == 4  # noqa: PT017 - as above
        assert str(error.code) in REFUSALS  # noqa: PT017
        assert "the base alone" not in error.message  # noqa: PT017
        return
    assert result.exact
    _check(pair, out, tmp_path)


def _check(pair: Pair, out: Path, tmp_path: Path) -> None:
    wanted = pair.merged(tmp_path / "a")
    adaptool.merge(pair.base, out, tmp_path / "b")
    found = tensors_of(tmp_path / "b")
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        difference = (value.double() - found[name].double()).norm()
        assert difference <= 2e-6 * value.double().norm() + 1e-12, name
