"""Who may import whom, who may open files for writing, who may touch the network."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from source_files import FILES, PACKAGE, nodes, tree, violations

_FLOOR = frozenset({"errors", "findings", "dtypes", "discovery", "errands", "names"})
_STORE = _FLOOR | {"store"}
_MODEL = _STORE | {"model"}
_METHODS = frozenset({"tuners", "combinations", "quantizers", "linalg"})
# A row of the table: the room, and the rooms of ours it may import besides itself.
MAY_IMPORT = {
    "errors": _FLOOR,
    "findings": _FLOOR,
    "dtypes": _FLOOR,
    "discovery": frozenset(),
    "errands": frozenset(),
    "names": _FLOOR,
    "store": _STORE,
    "model": _MODEL,
    "tuners": _MODEL | {"linalg"},
    "combinations": _MODEL | {"linalg"},
    "quantizers": _MODEL,
    "linalg": _MODEL,
    "layouts": _MODEL | {"tuners"},
    "readers": _MODEL | {"tuners"},
    "runtimes": _MODEL | {"tuners"},
    "ops": _MODEL | _METHODS | {"layouts", "readers", "runtimes"},
    "engine": _MODEL | _METHODS,
    "pages": _MODEL,
    "attestations": _MODEL,
    "remote": _STORE,
    "recipes": _MODEL,
    "api": _MODEL
    | _METHODS
    | {"layouts", "runtimes", "ops", "engine", "pages", "attestations", "recipes", "remote"},
    "cli": frozenset({"api", "errors", "findings", "model", "__init__"}),
    "__init__": frozenset({"api", "errors"}),
    "__main__": frozenset({"cli"}),
}
# Third parties that belong to some rooms only.
BELONGS_TO = {
    "click": {"cli"},
    "rich": {"cli"},
    "huggingface_hub": {"remote"},
    "socket": {"remote"},
    "ssl": {"remote"},
    "urllib": {"remote"},
    "http": {"remote"},
    "httpx": {"remote"},
    "requests": {"remote"},
    "yaml": {"recipes", "remote"},
    "torch": {"engine", "tuners", "combinations", "quantizers", "linalg", "ops", "layouts", "api"},
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "transformers": set(),
    "peft": set(),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, as seen from the top of the package."""

    target: str
    line: int
    at_top: bool
    for_types: bool

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.target.partition(".")[0]

    @property
    def room(self) -> str:
        """The room of ours it leads to."""
        return [*self.target.split("."), "__init__"][1]


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _guards_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@functools.cache
def _imports(path: Path) -> tuple[Import, ...]:
    return tuple(_walk(tree(path), at_top=True, for_types=False))


def _walk(node: ast.AST, *, at_top: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inner_types = for_types or _guards_types(child)
        inner_top = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(name.name, child.lineno, inner_top, inner_types)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import hides the room"
            for name in child.names:
                target = f"{child.module}.{name.name}"
                yield Import(target, child.lineno, inner_top, inner_types)
        yield from _walk(child, at_top=inner_top, for_types=inner_types)


def _inside(*rooms: str) -> list[Path]:
    return [path for path in FILES if _room(path) in rooms]


def _outside(*rooms: str) -> list[Path]:
    return [path for path in FILES if _room(path) not in rooms]


def _forbidden_rooms(path: Path) -> Iterator[str]:
    room = _room(path)
    allowed = MAY_IMPORT[room] | {room}
    for found in _imports(path):
        if found.package == "adaptool" and found.room not in allowed:
            yield f"line {found.line}: {room} imports {found.target}"


def test_room_imports_only_rooms_it_may() -> None:
    """The table of rooms holds, for lazy imports as well."""
    assert violations(FILES, _forbidden_rooms) == []


def _methods(room: str) -> set[str]:
    """The files of `room` that are a method of their own: those with a declaration."""
    return {file.stem for file in (PACKAGE / room).glob("*.py") if "DECLARATION" in _assigned(file)}


def _assigned(path: Path) -> set[str]:
    targets = (
        target
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )
    return {ast.unparse(target) for target in targets}


def _imported_methods(path: Path) -> Iterator[str]:
    room = _room(path)
    others = {f"adaptool.{room}.{name}" for name in _methods(room) - {path.stem}}
    for found in _imports(path):
        if any(f"{found.target}.".startswith(f"{other}.") for other in others):
            yield found.target


def test_method_does_not_import_another() -> None:
    """What two tuners share is a file without a declaration, so that adding one is one file."""
    assert violations(_inside("tuners", "combinations", "quantizers"), _imported_methods) == []


def _misplaced_packages(path: Path) -> Iterator[str]:
    room = _room(path)
    for found in _imports(path):
        if room not in BELONGS_TO.get(found.package, {room}) and not found.for_types:
            yield f"line {found.line}: {room} imports {found.target}"


def test_third_party_stays_in_its_room() -> None:
    """What draws is in cli, the network in remote, pickle nowhere."""
    assert violations(FILES, _misplaced_packages) == []


def _third_parties(path: Path) -> set[str]:
    return {found.package for found in _imports(path)} - {"adaptool"} - sys.stdlib_module_names


def test_lower_rooms_need_the_standard_library_only() -> None:
    """Errors, findings, dtypes and names import nothing from outside."""
    lower = _inside("errors", "findings", "dtypes", "discovery", "errands", "names")
    assert violations(lower, _third_parties) == []


def _heavy_at_top(path: Path) -> Iterator[str]:
    heavy = {"torch", "numpy", "scipy"}
    for found in _imports(path):
        if found.package in heavy and found.at_top and not found.for_types:
            yield f"line {found.line}: {found.target}"


def test_torch_is_never_imported_at_the_top() -> None:
    """Importing torch takes a second and a half: whoever needs it asks late."""
    assert violations(FILES, _heavy_at_top) == []


_WRITING_METHODS = {"write_text", "write_bytes", "touch", "mkdir", "unlink", "rmdir"} | {
    *("symlink_to", "hardlink_to", "rename", "replace", "chmod")
}
_WRITING_OS = {
    *("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "makedirs", "link", "symlink"),
    *("truncate", "ftruncate", "write", "pwrite", "copy_file_range", "chmod", "posix_fallocate"),
}
_READING_MODES = {"r", "rb", "rt"}


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    module, _, method = name.rpartition(".")
    if module == "os":
        return method in _WRITING_OS or (method == "open" and "O_RDONLY" not in ast.unparse(call))
    if module in {"shutil", "tempfile"}:
        return method != "which"
    if method == "open" and not _is_class(module):
        return _mode(call, position=0 if module else 1) not in _READING_MODES
    # str.replace takes two arguments, Path.replace one.
    if method == "replace":
        return len(call.args) == 1 and not call.keywords
    return bool(module) and method in _WRITING_METHODS


def _is_class(name: str) -> bool:
    # Staging.open(...) is a constructor of ours, not a file that is opened.
    return name[:1].isupper() and name != "Path"


def _mode(call: ast.Call, *, position: int) -> str:
    given = [word.value for word in call.keywords if word.arg == "mode"] + call.args[position:]
    if not given:
        return "r"
    return str(given[0].value) if isinstance(given[0], ast.Constant) else "unknown"


# The command line sends what is left of a broken stdout to /dev/null.
MAY_OPEN = {Path("cli/boundary.py"): ["os.open(os.devnull, os.O_WRONLY)"]}


def _writing_calls(path: Path) -> list[str]:
    calls = (node for node in nodes(path) if isinstance(node, ast.Call))
    wrong = [ast.unparse(call) for call in calls if _writes(call)]
    return [] if wrong == MAY_OPEN.get(path.relative_to(PACKAGE)) else wrong


def test_only_the_store_writes_files() -> None:
    """Outside store/ nothing creates, changes, renames or removes a file."""
    assert violations(_outside("store"), _writing_calls) == []


def _printing(path: Path) -> Iterator[str]:
    for node in nodes(path):
        named = isinstance(node, ast.Name) and node.id == "print"
        if named or (isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr"}):
            yield f"line {node.lineno}"


def test_core_never_prints() -> None:
    """Printing belongs to the command line."""
    assert violations(_outside("cli", "__main__"), _printing) == []


def test_every_room_has_a_row_in_the_table() -> None:
    """A new folder is given its place before it is used."""
    assert {_room(path) for path in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("open('x')", False),
        ("open('x', 'rb')", False),
        ("open('x', 'wb')", True),
        ("open('x', mode=kind)", True),
        ("path.open('a')", True),
        ("path.open()", False),
        ("Path.open(path, 'w')", True),
        ("Staging.open(out, digest)", False),
        ("path.write_text('x')", True),
        ("os.open(p, os.O_RDONLY | os.O_CLOEXEC)", False),
        ("os.open(p, os.O_WRONLY)", True),
        ("os.replace(a, b)", True),
        ("text.replace('a', 'b')", False),
        ("path.replace(other)", True),
        ("shutil.rmtree(p)", True),
    ],
)
def test_detector_tells_writing_from_reading(source: str, *, expected: bool) -> None:
    """The law above can fail."""
    call = ast.parse(source).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert _writes(call.value) is expected
