"""Sizes and names that keep the code readable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "adaptool"
ERRORS = PACKAGE / "errors.py"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FUNCTION = 60
LONGEST_MODULE = 400
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "handler", "common", "misc", "base"}
# Where every exception ends: the command line's boundary, and a worker thread, which hands it to
# the main thread. Elsewhere a broad one is caught only to clean up, and raised again.
MAY_CATCH_ALL = {Path("cli/boundary.py"), Path("engine/run.py"), Path("errands.py")}
BROAD = {"Exception", "BaseException"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


@pytest.fixture(params=FILES, ids=_ids)
def path(request: pytest.FixtureRequest) -> Path:
    found = request.param
    assert isinstance(found, Path)
    return found


@pytest.fixture
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _length(function: Function) -> int:
    body = function.body
    first = body[0].end_lineno if ast.get_docstring(function) else function.lineno
    assert first is not None
    assert function.end_lineno is not None
    return function.end_lineno - first


def test_function_has_at_most_60_lines(tree: ast.Module) -> None:
    """A function does one thing; its docstring does not count."""
    lengths = {node.name: _length(node) for node in ast.walk(tree) if isinstance(node, Function)}
    assert {name: count for name, count in lengths.items() if count > LONGEST_FUNCTION} == {}


def test_module_has_at_most_400_lines(path: Path) -> None:
    """A larger module is two modules."""
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


def test_module_name_says_something(path: Path) -> None:
    """No utils, no helpers, no manager."""
    assert path.stem not in EMPTY_NAMES


def test_class_has_no_tree_above_it(tree: ast.Module, path: Path) -> None:
    """Inheritance is for errors, protocols, enums and click's group."""
    wrong = [
        f"{node.name}({', '.join(map(ast.unparse, node.bases))})"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not _may_inherit(node, path)
    ]
    assert wrong == []


def _may_inherit(node: ast.ClassDef, path: Path) -> bool:
    allowed = {"StrEnum", "IntEnum", "Enum", "Generic", "NamedTuple", "TypedDict", "click.Group"}
    bases = {ast.unparse(base).partition("[")[0] for base in node.bases}
    # A private signal inside one module may be a plain ValueError.
    return bases <= allowed or "Protocol" in bases or bases == {"ValueError"} or path == ERRORS


def _caught(handler: ast.ExceptHandler) -> set[str]:
    if handler.type is None:
        return BROAD
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {ast.unparse(kind) for kind in types}


def test_no_broad_except(tree: ast.Module, path: Path) -> None:
    """What is caught is named, so that a bug is not taken for bad input."""
    broad = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and _caught(node) & BROAD
        and ast.unparse(node.body[-1]) != "raise"
    ]
    assert len(broad) == (1 if path.relative_to(PACKAGE) in MAY_CATCH_ALL else 0)


def _public(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    each
                    for each in node.body
                    if isinstance(each, Function) and not each.name.startswith("_")
                )


def test_public_names_have_docstrings(tree: ast.Module) -> None:
    """Module, class and function say what the caller gets."""
    assert ast.get_docstring(tree)
    assert [node.name for node in _public(tree) if not ast.get_docstring(node)] == []


def _mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    made = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    return made in {"list", "dict", "set", "defaultdict", "Counter", "deque"}


CHANGING = {"append", "add", "update", "setdefault", "pop", "clear", "extend", "remove"}


def _changed_names(tree: ast.Module) -> Iterator[str]:
    """Names that are rebound by `global`, stored into, or told to change."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Subscript | ast.Attribute) and _changes(node):
            yield ast.unparse(node.value)


def _changes(node: ast.Subscript | ast.Attribute) -> bool:
    if isinstance(node, ast.Subscript):
        return not isinstance(node.ctx, ast.Load)
    return node.attr in CHANGING


def test_no_global_state_changes(tree: ast.Module) -> None:
    """A list or dict at module level is a table: nothing in the module changes it."""
    tables = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and _mutable(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    assert set(tables) & set(_changed_names(tree)) == set()
