"""The README's table of tuners is the one in their files.

    PYTHONPATH=.:tests python tests/laws/test_readme_tuners.py

prints the lines anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import adaptool
from adaptool.errors import AdaptoolError
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Carrying, Declaration
from adaptool.ops.low_rank import has_factors
from adaptool.ops.plain_lora import PLAIN, is_expressible
from adaptool.tuners import tuners
from tuner_cases import Case, cases, make

README = (Path(__file__).parents[2] / "README.md").read_text()
HEAD = ("tuner", "`peft_type`", "merge", "unmerge", "resize", "combine", "to LoRA")
MERGED = {"any": "by tiles", "rows": "by rows", "whole": "whole"}
UNMERGED = {"exactly": "exactly", "rounding": "up to rounding", "no": "no"}
NO_SIZES, GIVEN = "no sizes", "with `--init-adapter`"


def row(name: str) -> tuple[str, ...]:
    """A tuner's cells, by the columns of `HEAD`."""
    tuner = tuners()[name]
    declared = tuner.DECLARATION
    delta = Delta("module", "module.weight", name, {}, Terms(Form.LINEAR, 1, 1, 1.0))
    summed = name in PLAIN or isinstance(tuner, Carrying) or is_expressible(delta)
    return (
        f"{declared.title} (`{name}`)",
        _carrier(declared),
        "replaces" if isinstance(tuner, Carrying) else _merged(declared),
        UNMERGED[declared.invertible],
        _cell(declared, possible=name in PLAIN or has_factors(delta)),
        _cell(declared, possible=summed),
        GIVEN if declared.init else _cell(declared, possible=summed),
    )


def _merged(declared: Declaration) -> str:
    """How a base tensor passes: where all of it is needed, held or only read before."""
    if declared.tile == "whole" and not declared.workspace:
        return "in two passes"
    return MERGED[declared.tile]


def _carrier(declared: Declaration) -> str:
    """PEFT's name for its config, and the field that makes it another tuner's."""
    switch = declared.switch or declared.init
    return f"{declared.peft_type or '-'}{f', {switch}' if switch else ''}"


def _cell(declared: Declaration, *, possible: bool) -> str:
    if not possible:
        return "no"
    return "yes" if declared.sizes_told else NO_SIZES


def line(cells: tuple[str, ...]) -> str:
    """A line of the table."""
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """All of it, a tuner a line."""
    rule = f"|{'---|' * len(HEAD)}"
    return "\n".join((line(HEAD), rule, *(line(row(name)) for name in tuners())))


def test_table_of_tuners_is_the_registrys() -> None:
    """Word for word and in its order; a new file is a new line."""
    assert table() in README


@pytest.fixture(params=tuners())
def case(request: pytest.FixtureRequest) -> Case:
    """The first example of each tuner."""
    return next(found for found in cases() if found.tuner == request.param)


def test_cells_are_what_happens(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """resize, combine and convert do what the table says they do, and refuse the rest."""
    path = make(case, tmp_path_factory.getbasetemp()).adapter
    told = dict(zip(HEAD, row(case.tuner), strict=True))
    verbs: dict[str, Callable[[], object]] = {
        "resize": lambda: adaptool.resize(path, tmp_path / "resized", rank=1),
        "combine": lambda: adaptool.combine(path, path, out=tmp_path / "combined"),
        "to LoRA": lambda: adaptool.convert(path, tmp_path / "lora", to="lora"),
    }
    assert {verb: done(run) for verb, run in verbs.items()} == {
        verb: told[verb] == "yes" for verb in verbs
    }


def done(verb: Callable[[], object]) -> bool:
    """Whether it went through; only adaptool's own errors are a refusal."""
    try:
        verb()
    except AdaptoolError:
        return False
    return True


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
