"""Sizes and names that keep the code readable."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from source_files import FILES, PACKAGE, nodes, tree, violations

ERRORS = PACKAGE / "errors.py"
LONGEST_FUNCTION = 60
LONGEST_MODULE = 400
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "handler", "common", "misc", "base"}
# Where every exception ends: the command line's boundary, and a worker thread, which hands it to
# the main thread. Elsewhere a broad one is caught only to clean up, and raised again.
MAY_CATCH_ALL = {Path("cli/boundary.py"), Path("engine/run.py"), Path("errands.py")}
BROAD = {"Exception", "BaseException"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _length(function: Function) -> int:
    body = function.body
    first = body[0].end_lineno if ast.get_docstring(function) else function.lineno
    assert first is not None
    assert function.end_lineno is not None
    return function.end_lineno - first


def _long_functions(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, Function) and _length(node) > LONGEST_FUNCTION:
            yield f"{node.name}: {_length(node)} lines"


def test_function_has_at_most_60_lines() -> None:
    """A function does one thing; its docstring does not count."""
    assert violations(FILES, _long_functions) == []


def test_module_has_at_most_400_lines() -> None:
    """A larger module is two modules."""
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {path for path, lines in lengths.items() if lines > LONGEST_MODULE} == set()


def test_module_name_says_something() -> None:
    """No utils, no helpers, no manager."""
    assert [path for path in FILES if path.stem in EMPTY_NAMES] == []


def _inheriting(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.ClassDef) and not _may_inherit(node, path):
            yield f"{node.name}({', '.join(map(ast.unparse, node.bases))})"


def test_class_has_no_tree_above_it() -> None:
    """Inheritance is for errors, protocols, enums and click's group."""
    assert violations(FILES, _inheriting) == []


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


def _broad(path: Path) -> Iterator[int]:
    for node in nodes(path):
        if (
            isinstance(node, ast.ExceptHandler)
            and _caught(node) & BROAD
            and ast.unparse(node.body[-1]) != "raise"
        ):
            yield node.lineno


def test_no_broad_except() -> None:
    """What is caught is named, so that a bug is not taken for bad input."""
    ends = {PACKAGE / name for name in MAY_CATCH_ALL}
    assert violations(set(FILES) - ends, _broad) == []
    assert [len(list(_broad(path))) for path in ends] == [1] * len(ends)


def _public(path: Path) -> Iterator[ast.ClassDef | Function]:
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    each
                    for each in node.body
                    if isinstance(each, Function) and not each.name.startswith("_")
                )


def _undocumented(path: Path) -> Iterator[str]:
    if not ast.get_docstring(tree(path)):
        yield "the module"
    for node in _public(path):
        if not ast.get_docstring(node):
            yield node.name


def test_public_names_have_docstrings() -> None:
    """Module, class and function say what the caller gets."""
    assert violations(FILES, _undocumented) == []


def _mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    made = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    return made in {"list", "dict", "set", "defaultdict", "Counter", "deque"}


CHANGING = {"append", "add", "update", "setdefault", "pop", "clear", "extend", "remove"}


def _changed_names(path: Path) -> Iterator[str]:
    """Names that are rebound by `global`, stored into, or told to change."""
    for node in nodes(path):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Subscript | ast.Attribute) and _changes(node):
            yield ast.unparse(node.value)


def _changes(node: ast.Subscript | ast.Attribute) -> bool:
    if isinstance(node, ast.Subscript):
        return not isinstance(node.ctx, ast.Load)
    return node.attr in CHANGING


def _changed_tables(path: Path) -> Iterable[str]:
    tables = {
        target.id
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and _mutable(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return tables & set(_changed_names(path)) if tables else ()


def test_no_global_state_changes() -> None:
    """A list or dict at module level is a table: nothing in the module changes it."""
    assert violations(FILES, _changed_tables) == []
