"""The rule about deltas that a packed format swallows, at its edges."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from adaptool.engine.retention import lost_deltas
from adaptool.errors import MismatchError
from adaptool.findings import Code, Severity
from adaptool.model.options import Precision
from adaptool.model.plan import Plan
from adaptool.model.results import MergeStats


def _plan(least: float | None) -> Plan:
    return Plan((), (), (), Precision.FLOAT64, least_retained=least)


def _stats(shares: Mapping[str, float | None]) -> MergeStats:
    return MergeStats(None, None, recoded=shares)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": None}, {"a": 1.2, "b": None}])
def test_half_and_more_is_enough(shares: dict[str, float | None]) -> None:
    """Exactly half passes, and so does a delta of zeros, of which nothing can be lost."""
    assert lost_deltas(_plan(0.5), _stats(shares)) == ()


@pytest.mark.parametrize("worst", [0.49999, 0.0, -0.3])
def test_the_worst_weight_is_named_with_its_share(worst: float) -> None:
    """Less than half fails, also where the stored delta points the other way."""
    stats = _stats({"a": 0.9, "b": worst, "c": 0.499995, "d": None})
    with pytest.raises(MismatchError) as caught:
        lost_deltas(_plan(0.5), stats)
    assert (caught.value.code, caught.value.tensor) == (Code.DELTA_LOST, "b")
    assert f"{worst:.1%}" in caught.value.message
    assert caught.value.exit_code == 4


def test_allowed_loss_is_still_said() -> None:
    """A plan that asks for nothing gets a warning in place of the error."""
    (found,) = lost_deltas(_plan(None), _stats({"a": 0.1, "b": 0.2}))
    assert (found.severity, found.code, found.tensor) == (Severity.WARNING, Code.DELTA_LOST, "a")
