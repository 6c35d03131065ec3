"""Each rule of each runtime is met by an adapter made for it, and by no other."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from adaptool.findings import Severity
from adaptool.runtimes import Candidate, judged, runtimes
from adaptool.runtimes.rules import Rule, Runtime, Verdict
from served import OWN_LAYOUT, Case, candidate, case_of

EVERY = [(name, rule) for name, target in runtimes().items() for rule in target.rules]


def _met(target: Runtime, found: Candidate) -> set[str]:
    return {rule.about for rule in target.rules if rule.applies(found) and any(rule.check(found))}


@pytest.mark.parametrize(
    ("name", "rule"), EVERY, ids=[f"{name}: {rule.about}" for name, rule in EVERY]
)
def test_rule_is_met_by_its_case_alone(name: str, rule: Rule, tmp_path: Path) -> None:
    """One finding with the rule's verdict, severity, field and command, and no other rule's."""
    target, case = runtimes()[name], case_of(name, rule.about)
    with ExitStack() as stack:
        found = candidate(stack, tmp_path, name, case)
        assert _met(target, found) == {rule.about, *case.also}
        said = [
            finding
            for finding in judged(target, found)
            if finding.message.startswith(f"{rule.verdict} ")
            and (case.field is None or finding.field == case.field)
        ]
    assert said
    assert {finding.severity for finding in said} == {rule.severity}
    assert all(target.title in finding.message and finding.hint for finding in said)


@pytest.mark.parametrize("name", runtimes())
def test_plain_adapter_in_its_own_layout_meets_no_rule(name: str, tmp_path: Path) -> None:
    """No false alarm."""
    with ExitStack() as stack:
        found = candidate(stack, tmp_path, name, Case())
        assert list(judged(runtimes()[name], found)) == []


@pytest.mark.parametrize("name", runtimes())
@pytest.mark.parametrize("layout", [*sorted(set(OWN_LAYOUT.values())), "kohya"])
def test_layout_that_is_not_read_is_said_first(name: str, layout: str, tmp_path: Path) -> None:
    """The finding names the command that converts; no layout of its own is refused."""
    target = runtimes()[name]
    with ExitStack() as stack:
        case = Case(names=("some.key",), layout=layout)
        said = list(judged(target, candidate(stack, tmp_path, name, case)))
    unread = [finding for finding in said if finding.message.endswith(f"; this is {layout}")]
    assert len(unread) == (not target.reads(layout))
    assert target.reads(OWN_LAYOUT[name])
    assert said[:1] == unread or not unread
    assert all(str(finding.hint).startswith("adaptool convert ADAPTER OUT") for finding in unread)


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "mlx"])
def test_tuner_that_no_lora_can_stand_for_is_to_be_merged(name: str, tmp_path: Path) -> None:
    """A conversion is proposed only for what is a product of two factors."""
    with ExitStack() as stack:
        found = candidate(stack, tmp_path, name, Case())
        assert found.adapter is not None
        deltas = tuple(replace(delta, tuner="of tomorrow") for delta in found.deltas)
        other = replace(found, adapter=replace(found.adapter, deltas=deltas))
        (finding,) = judged(runtimes()[name], other)
    assert f"refused by {runtimes()[name].title}: of tomorrow instead of LoRA" in finding.message
    assert str(finding.hint).startswith("adaptool merge")


def test_only_what_is_harmless_or_conditional_is_a_warning() -> None:
    """Refused and mis-scaled are errors in every table."""
    mild = {rule.verdict for _, rule in EVERY if rule.severity is Severity.WARNING}
    assert mild == {Verdict.IGNORED, Verdict.CONDITIONAL}
    assert all(
        rule.harmless
        for _, rule in EVERY
        if rule.severity is Severity.WARNING and rule.verdict is Verdict.IGNORED
    )


def test_no_two_rules_of_a_runtime_are_called_the_same() -> None:
    """The README's table has one entry for each."""
    for target in runtimes().values():
        names = [rule.about for rule in target.rules]
        assert len(set(names)) == len(names)
