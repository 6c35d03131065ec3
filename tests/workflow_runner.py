"""Runs the steps of a workflow and of a composite action as GitHub's runner would.

As far as ours need it: scripts in their shell, inputs, outputs, `env`, the files that steps write
to. A stand-in: actions of others do nothing, `pip install` is written down and not run,
`adaptool` is the one of this tree, `python` the one of the tests. Any expression that is not a
plain reference to an input, a step's output or a secret is refused.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from command_line import ROOT

ACTION = ROOT / "action.yml"
_EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")
# How the runner starts a script. Source: docs.github.com, workflow syntax, `jobs.*.steps[*].shell`;
# bash without `shell:` lacks pipefail.
_SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail"],
    "": ["bash", "-e"],
    "python": [sys.executable],
}


@dataclass(frozen=True)
class Step:
    """A step that ran: its log and its exit code."""

    name: str
    code: int
    log: str


@dataclass
class Runner:
    """One job in `workspace`; `scratch` is the runner's own, outside of it."""

    workspace: Path
    scratch: Path
    secrets: Mapping[str, str] = field(default_factory=dict)
    ran: list[Step] = field(default_factory=list)

    @property
    def summary(self) -> Path:
        """The job's summary; the runner has one a step and joins them."""
        return self.scratch / "summary"

    @property
    def installed(self) -> list[list[str]]:
        """The arguments of every `pip` that a script called."""
        log = self.scratch / "pip"
        return [row.split("\t") for row in log.read_text().splitlines()] if log.exists() else []

    def job(self, steps: list[Mapping[str, Any]]) -> int:
        """Run the steps of a job; the exit code of the first that fails, else 0."""
        self.scratch.mkdir()
        _shims(self.scratch / "bin", self.scratch / "pip")
        known: dict[str, str] = {f"secrets.{key}": text for key, text in self.secrets.items()}
        for step in steps:
            code = self._step(step, known, {})
            if code:
                return code
        return 0

    def _step(self, step: Mapping[str, Any], known: dict[str, str], env: Mapping[str, str]) -> int:
        own = {key: _filled(str(text), known) for key, text in step.get("env", {}).items()}
        if step.get("uses") == "./":
            return self._action(step, known, {**env, **own})
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            return 0
        return self._script(step, known, {**env, **own})

    def _action(
        self, step: Mapping[str, Any], known: dict[str, str], env: Mapping[str, str]
    ) -> int:
        action = yaml.safe_load(ACTION.read_text())
        given = {key: _filled(str(text), known) for key, text in step.get("with", {}).items()}
        assert set(given) <= set(action["inputs"])
        inside = {
            f"inputs.{name}": given.get(name, str(about.get("default", "")))
            for name, about in action["inputs"].items()
        }
        code = 0
        for inner in action["runs"]["steps"]:
            code = code or self._step(inner, inside, env)
        for name, about in action["outputs"].items():
            known[f"steps.{step.get('id')}.outputs.{name}"] = _filled(about["value"], inside)
        return code

    def _script(
        self, step: Mapping[str, Any], known: dict[str, str], env: Mapping[str, str]
    ) -> int:
        assert "${{" not in step["run"], "an expression in a script is an injection"
        script, outputs = self.scratch / "script", self.scratch / "outputs"
        script.write_text(step["run"])
        outputs.write_text("")
        done = subprocess.run(
            [*_SHELLS[step.get("shell", "")], str(script)],
            cwd=self.workspace,
            env={**self._environment(outputs), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self.ran.append(Step(str(step.get("name", step["run"])), done.returncode, done.stdout))
        for row in outputs.read_text().splitlines():
            key, _, text = row.partition("=")
            known[f"steps.{step.get('id')}.outputs.{key}"] = text
        return done.returncode

    def _environment(self, outputs: Path) -> dict[str, str]:
        return {
            "PATH": f"{self.scratch / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.scratch),
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_TEMP": str(self.scratch),
        }


def _filled(text: str, known: Mapping[str, str]) -> str:
    filled = _EXPRESSION.sub(lambda found: known[found[1]], text)
    assert "${{" not in filled, text
    return filled


def _shims(folder: Path, log: Path) -> None:
    """`python` and `adaptool` on the PATH."""
    folder.mkdir()
    python = f"""#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then
    shift 2
    for word in "$@"; do printf '%s\\t' "$word" >> '{log}'; done
    echo >> '{log}'
    exit 0
fi
exec '{sys.executable}' "$@"
"""
    program = f"""#!{sys.executable}
import sys
from adaptool.cli.main import main
sys.exit(main())
"""
    for name, text in (("python", python), ("adaptool", program)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def scripts(body: object) -> Iterator[str]:
    """Every `run:` script in a workflow or an action."""
    if isinstance(body, Mapping):
        if isinstance(body.get("run"), str):
            yield body["run"]
        for inner in body.values():
            yield from scripts(inner)
    elif isinstance(body, list):
        for inner in body:
            yield from scripts(inner)
