"""A hint that names an option names one that its command has; a slug is one of the code's.

The hints are read in the code: every string that an error or a finding is made with, and the ways
to mend that a runtime's table gives.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from adaptool.cli.main import group
from adaptool.findings import Code

PACKAGE = Path(__file__).resolve().parents[2] / "adaptool"
README = (PACKAGE.parent / "README.md").read_text()
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
NAMED = re.compile(r"adaptool ([a-z]+)\b")
HINTS = {"hint", "mend"}
READING = {"inspect", "validate", "merge", "verify", "unmerge", "diff"} | {
    *("resize", "combine", "convert")
}
WRITING = {"merge", "unmerge", "resize", "combine", "convert", "extract"}
PLANNING = {"merge", "verify", "validate", "unmerge"}
_OF_MERGE = ("merge", "ties", "quantized", "qlora", "contributions")
# Which commands run the code of a folder or file, the longest path decides. What stands in none
# of them is run by all.
RUN_BY = {
    "api": set(),
    "layouts": READING,
    **{
        f"layouts/{path.name}": {"resize", "combine", "convert"}
        for path in (PACKAGE / "layouts").glob("*_encode.py")
    },
    "tuners": READING,
    "readers": {"resize", "combine", "convert", "extract"},
    "ops/convert.py": {"convert"},
    "ops/combine.py": {"combine"},
    "ops/resize.py": {"resize"},
    "ops/extract.py": {"extract"},
    **{f"ops/{name}.py": PLANNING for name in _OF_MERGE},
    "ops/unmerge.py": {"unmerge"},
    "ops/inspect.py": {"inspect"},
    "ops/validate.py": {"validate"},
    "store/pickle_door.py": {*READING, "extract", "pull"},
    "recipes": {"run"},
}
# BASE is an argument of these, so that a hint which asks for a base is not raised there.
WITH_BASE = {"merge", "verify", "unmerge"}
# Options of other programs.
FOREIGN = {"--max-lora-rank", "--outtype"}


def _options() -> dict[str, set[str]]:
    context = click.Context(group)
    return {
        name: {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
        for name in group.list_commands(context)
        if (command := group.get_command(context, name)) is not None
    }


OPTIONS = _options()
EVERY = set().union(*OPTIONS.values())


def _strings(node: ast.AST) -> Iterator[str]:
    """What a literal says; `{}` for what is put into it."""
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in each.values)
            yield "".join(map(str, parts))
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def _hints(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file that say what to do, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg in HINTS:
            yield from ((node.value.lineno, text) for text in _strings(node.value))
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and (target.id in HINTS or target.id.endswith("_HINT"))
            for target in node.targets
        ):
            yield from ((node.lineno, text) for text in _strings(node.value))
        elif isinstance(node, ast.Assign) and path.parent.name == "runtimes":
            yield from (
                (node.lineno, text) for text in _strings(node.value) if text.startswith("adaptool ")
            )


FILES = sorted(PACKAGE.rglob("*.py"))
FOUND = [(path, line, text) for path in FILES for line, text in _hints(path)]


def test_there_are_hints_to_walk() -> None:
    """The walk sees them: several hundred stand in the code."""
    assert len(FOUND) > 200
    assert sum(bool(OPTION.search(text)) for _, _, text in FOUND) > 40


def test_every_option_in_a_hint_is_an_option() -> None:
    """No hint names one that no command has."""
    wrong = [
        (str(path.relative_to(PACKAGE)), line, option)
        for path, line, text in FOUND
        for option in OPTION.findall(text)
        if option not in EVERY | FOREIGN
    ]
    assert wrong == []


def test_a_hint_that_spells_a_command_gives_it_options_that_it_has() -> None:
    """`adaptool convert ... --base` only where convert takes a base."""
    wrong = []
    for path, line, text in FOUND:
        for clause in re.split(r",| or |;", text):
            named = NAMED.search(clause)
            if named is None or named[1] not in OPTIONS:
                continue
            after = OPTION.findall(clause[named.end() :])
            wrong += [
                (str(path.relative_to(PACKAGE)), line, option)
                for option in after
                if option not in OPTIONS[named[1]] | FOREIGN
            ]
    assert wrong == []


def _commands(path: Path) -> set[str]:
    relative = str(path.relative_to(PACKAGE))
    found = [prefix for prefix in RUN_BY if relative.startswith(prefix)]
    return RUN_BY[max(found, key=len)] if found else set()


def test_an_option_in_a_hint_is_one_of_the_command_that_raises_it() -> None:
    """Where the text names no command of its own, what it says is typed to the one that ran."""
    wrong = []
    for path, line, text in FOUND:
        if NAMED.search(text) or re.search(r"\b(merge|convert|extract|unmerge|resize)\b", text):
            continue
        for option in OPTION.findall(text):
            known = WITH_BASE if option == "--base" else set()
            lacking = {name for name in _commands(path) - known if option not in OPTIONS[name]}
            if lacking:
                wrong.append((str(path.relative_to(PACKAGE)), line, option, sorted(lacking)))
    assert wrong == []


def test_slugs_in_the_readme_are_those_of_the_code() -> None:
    """A finding or error named in the README, as `code[...]` or in a list of codes, exists."""
    slugs = {str(code) for code in Code}
    named = set(re.findall(r"(?:error|warning|note)\[([a-z0-9-]+)\]", README))
    named |= set(re.findall(r"\"code\": ?\"([a-z0-9-]+)\"", README))
    assert named <= slugs
