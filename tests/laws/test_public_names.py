"""`import adaptool` gives the verbs and the errors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adaptool
from adaptool import api, errors


def test_every_error_of_the_tree_is_public() -> None:
    """Whoever catches an error finds its class at the top."""
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AdaptoolError)
    }
    assert tree <= set(adaptool.__all__)
    assert all(getattr(adaptool, name) is getattr(errors, name) for name in tree)


def test_every_verb_of_the_api_is_public() -> None:
    """The library's verbs are those that the files of api/ define, no more and no less."""
    verbs = {
        node.name
        for file in Path(str(api.__file__)).parent.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    public = {name for name in adaptool.__all__ if name.islower() and not name.startswith("_")}
    assert public == verbs
    assert all(getattr(adaptool, verb) is getattr(api, verb) for verb in verbs)


def test_unknown_name_is_an_attribute_error() -> None:
    """A typo says so as for any module."""
    with pytest.raises(AttributeError, match="no attribute 'murge'"):
        _ = adaptool.murge  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import adaptool` costs nothing until a name is used."""
    heavy = "{'torch', 'numpy', 'click', 'rich'}"
    code = f"import adaptool, sys; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_version_is_the_installed_one() -> None:
    """One source of truth: the package's metadata is built from __version__."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("adaptool")
    except PackageNotFoundError:
        pytest.skip("run from a source tree")
    assert installed == adaptool.__version__
