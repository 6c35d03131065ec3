"""The README's table of runtimes is the one in their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.runtimes import runtimes
from adaptool.runtimes.rules import Runtime, Verdict

README = (Path(__file__).parents[2] / "README.md").read_text()


def row(name: str, target: Runtime) -> str:
    """A runtime's line: its name for --target, its release, what it reads, what becomes of what."""
    by_verdict = [
        "; ".join(rule.about for rule in target.rules if rule.verdict is verdict)
        for verdict in Verdict
    ]
    head = [f"`{name}`", f"{target.title} {target.version}", target.layouts]
    return f"| {' | '.join([*head, *(cell or '-' for cell in by_verdict)])} |"


@pytest.mark.parametrize("name", runtimes())
def test_every_runtime_stands_in_the_table(name: str) -> None:
    """What is checked for it, word for word; a new rule is a new word there."""
    assert row(name, runtimes()[name]) in README


def test_head_of_the_table_names_the_verdicts() -> None:
    """The columns are those that findings begin with."""
    assert f"| {' | '.join(Verdict)} |" in README
