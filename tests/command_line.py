"""Runs `python -m adaptool` as a user does, and reads what it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "fixtures" / "base"
ADAPTER = ROOT / "fixtures" / "adapter"


@dataclass(frozen=True)
class Run:
    """A finished process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, without what changes how adaptool shows things."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "ADAPTOOL_DEBUG"}
    }
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Run:
    """`python -m adaptool ARGUMENTS`."""
    command = [sys.executable, "-m", "adaptool", *map(str, arguments)]
    return finish(command, env=env)


def run_patched(patch: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Run:
    """The same, after the Python statements in `patch`."""
    return finish(patched(patch, *arguments), env=env)


def patched(patch: str, *arguments: str | Path) -> list[str]:
    """A command that runs `patch`, then the command line."""
    code = f"import sys\n{patch}\nfrom adaptool.cli.main import main\nsys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def finish(command: list[str], *, env: Mapping[str, str] | None = None) -> Run:
    """Run `command` to its end."""
    done = subprocess.run(
        command, env=environment(env), capture_output=True, text=True, timeout=300, check=False
    )
    return Run(done.returncode, done.stdout, done.stderr)
