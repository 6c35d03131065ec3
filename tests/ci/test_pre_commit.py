"""The pre-commit hook: which files it looks at, and what its entry makes of them.

pre-commit itself would install torch into an environment of its own; here its part is played by
`_hooked`, which selects files and appends them to the entry as pre-commit's documentation says.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import ADAPTER, BASE, ROOT, Run, run

(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
Adaptool = Callable[..., Any]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with an adapter, a model and other things, in which commands run."""
    shutil.copytree(ADAPTER, tmp_path / "adapters" / "one")
    shutil.copytree(BASE, tmp_path / "base")
    shutil.copy(ADAPTER / "adapter_model.safetensors", tmp_path / "style.safetensors")
    (tmp_path / "README.md").write_text("# Adapters\n")
    (tmp_path / "package.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _selected(root: Path) -> list[str]:
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return [name for name in names if re.search(HOOK["files"], name)]


def _hooked(names: list[str]) -> Run:
    program, *words = shlex.split(HOOK["entry"])
    assert program == "adaptool"
    return run(*words, *names)


def test_hook_has_the_keys_that_pre_commit_asks_for() -> None:
    """Source: pre-commit.com, "Creating new hooks": id, name, entry and language are required."""
    assert HOOK["id"] == "adaptool-validate"
    assert HOOK["language"] == "python"
    known = {"id", "name", "description", "entry", "language", "files", "require_serial"}
    assert set(HOOK) == known


def test_hook_looks_at_weights_configs_and_indexes(checkout: Path) -> None:
    """And at nothing else, wherever it lies."""
    assert _selected(checkout) == [
        "adapters/one/adapter_config.json",
        "adapters/one/adapter_model.safetensors",
        "base/model-00001-of-00002.safetensors",
        "base/model-00002-of-00002.safetensors",
        "base/model.safetensors.index.json",
        "style.safetensors",
    ]


def test_hook_checks_each_artifact_once(checkout: Path) -> None:
    """Six files of three artifacts are three lines."""
    answer = _hooked(_selected(checkout))
    assert answer.out.splitlines()[:2] == [
        "adapters/one: ok: nothing found",
        "base: ok: nothing found",
    ]
    assert answer.out.splitlines()[-1].startswith("style.safetensors: ")


def test_hook_refuses_a_commit_that_breaks_an_adapter(checkout: Path) -> None:
    """Only the config was changed: the weights beside it no longer fit, and the others are told."""
    file = checkout / "adapters" / "one" / "adapter_config.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "r": body["r"] * 2}))
    answer = _hooked(["adapters/one/adapter_config.json", "base/model.safetensors.index.json"])
    assert answer.code == 1
    assert answer.out.splitlines()[0].startswith("error[")
    assert "adapters/one: not ok: " in answer.out
    assert answer.out.splitlines()[-1] == "base: ok: nothing found"
