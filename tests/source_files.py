"""The package's source files, each parsed once, for the laws that read code."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "adaptool"
FILES = tuple(sorted(PACKAGE.rglob("*.py")))


@functools.cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of it."""
    return tuple(ast.walk(tree(path)))


def violations(files: Iterable[Path], check: Callable[[Path], Iterable[object]]) -> list[str]:
    """What `check` finds, after the name of the file it finds it in.

    All files in one test: a case for each of them takes minutes, and says the same.
    """
    every = list(files)
    assert every, "no file is checked"
    return [
        f"{path.relative_to(PACKAGE.parent)}: {found}" for path in every for found in check(path)
    ]
