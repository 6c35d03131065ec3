"""The README's table of tuners is the one in their files.

    PYTHONPATH=.:tests python tests/laws/test_readme_tuners.py

prints the lines anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adaptool
from adaptool.errors import AdaptoolError
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Carrying, Declaration, Tuner
from adaptool.ops.low_rank import has_factors
from adaptool.ops.plain_lora import PLAIN, is_expressible
from adaptool.tuners import tuners
from tuner_cases import Case, cases, make

README = (Path(__file__).parents[2] / "README.md").read_text()
HEAD = ("tuner", "`peft_type`", "merge", "unmerge", "resize", "combine", "to LoRA")
MERGED = {"any": "by tiles", "rows": "by rows", "whole": "whole"}
BY_INITIAL = "with `--init-adapter`"
WAYS = {
    "yes": ("out",),
    "with `--base`": ("out", "base"),
    "with `--base`, `--rank`": ("out", "base", "rank"),
}
"""A cell -> the arguments that the verb needs."""


def row(name: str) -> tuple[str, ...]:
    """A tuner's cells, by the columns of `HEAD`."""
    tuner = tuners()[name]
    declared = tuner.DECLARATION
    summed = "no" if declared.init else _summed(name, tuner)
    return (
        f"{declared.title} (`{name}`)",
        _carrier(declared),
        "replaces" if isinstance(tuner, Carrying) else _merged(declared),
        _unmerged(declared, tuner),
        _resized(name, declared),
        summed,
        BY_INITIAL if declared.init else "yes" if isinstance(tuner, Carrying) else summed,
    )


def _resized(name: str, declared: Declaration) -> str:
    if name not in PLAIN and not has_factors(_delta(name)):
        return "no"
    return "yes" if name in PLAIN or declared.sizes_told else "with `--base`"


def _delta(name: str) -> Delta:
    return Delta("module", "module.weight", name, {}, Terms(Form.LINEAR, 1, 1, 1.0))


def _carrier(declared: Declaration) -> str:
    """PEFT's name for its config, and the field that makes it another tuner's."""
    switch = declared.switch or declared.init
    return f"{declared.peft_type or '-'}{f', {switch}' if switch else ''}"


def _merged(declared: Declaration) -> str:
    """How a base tensor passes: where all of it is needed, held or only read before."""
    if declared.tile == "whole" and not declared.workspace:
        return "in two passes"
    return MERGED[declared.tile]


def _unmerged(declared: Declaration, tuner: Tuner) -> str:
    """A sum can be subtracted; anything else needs what a reversible merge keeps."""
    subtracted = declared.additive and not isinstance(tuner, Carrying)
    return "also subtracted" if subtracted else "with `--reversible`"


def _summed(name: str, tuner: Tuner) -> str:
    """What it takes to have the update as LoRA factors, or as what needs none."""
    declared = tuner.DECLARATION
    if isinstance(tuner, Carrying):
        return "no"  # PEFT loads no LoRA of whole tensors alone
    if name in PLAIN:
        return "yes"
    if is_expressible(_delta(name)):
        return "yes" if declared.sizes_told else "with `--base`"
    # What changes biases alone leaves no weight to take factors of.
    return "no" if declared.required == {"difference"} else "with `--base`, `--rank`"


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


@pytest.mark.slow
def test_cells_are_what_happens(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first way that works is the one that the table names; `no` where none does."""
    pair = make(case, tmp_path_factory.getbasetemp())
    told = dict(zip(HEAD, row(case.tuner), strict=True))
    given = {"base": pair.base, "rank": 2}

    def first(verb: Callable[..., object]) -> str:
        for cell, names in WAYS.items():
            arguments = {name: given.get(name, tmp_path / cell) for name in names}
            if done(verb, arguments):
                return cell
        return "no"

    assert (
        first(lambda **more: adaptool.resize(pair.adapter, **{**more, "rank": 1})) == told["resize"]
    )
    assert (
        first(lambda **more: adaptool.combine(pair.adapter, pair.adapter, **more))
        == told["combine"]
    )
    found = first(lambda **more: adaptool.convert(pair.adapter, to="lora", **more))
    assert found == told["to LoRA"].replace(BY_INITIAL, "no")


def done(verb: Callable[..., object], arguments: dict[str, Any]) -> bool:
    """Whether it went through; only adaptool's own errors are a refusal."""
    try:
        verb(**arguments, overwrite=True)
    except AdaptoolError:
        return False
    return True


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
