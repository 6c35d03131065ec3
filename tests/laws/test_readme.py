"""What the README says is true of the program."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from adaptool.cli.main import group
from adaptool.quantizers import quantizers
from command_line import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", group.list_commands(click.Context(group)))
def test_every_command_stands_in_the_table(name: str) -> None:
    """A command without a line in the README is one that nobody finds."""
    assert f"| `adaptool {name} " in README


def test_every_storage_scheme_is_named() -> None:
    """The list of quantized bases is the registry's, in its order."""
    titles = ", ".join(quantizer.SCHEME.title for quantizer in quantizers().values())
    assert titles in " ".join(README.split())


def test_number_of_tied_classes_is_counted() -> None:
    """The figure is the table's."""
    table = json.loads((ROOT / "adaptool" / "names" / "ties.json").read_text())
    assert f"{len(table['classes'])} model classes" in README


def test_console_session_is_real(tmp_path: Path) -> None:
    """Each command prints what stands below it, but for the seconds and the folder."""
    block = README.split("    $ ", 1)[1].split("\n\n", 1)[0]
    for step in ("    $ " + block).split("    $ ")[1:]:
        command, *printed = [line.strip() for line in step.strip().splitlines()]
        demo = str(tmp_path / "demo")
        words = [word.replace("build/demo", demo) for word in shlex.split(command)[1:]]
        arguments = [str(ROOT / word) if word.startswith("fixtures/") else word for word in words]
        found = run(*arguments).out.replace(demo, "build/demo")
        assert _without_seconds(found.strip()) == _without_seconds("\n".join(printed))


def _without_seconds(text: str) -> str:
    return re.sub(r"\d+\.\d s", "N s", text)
