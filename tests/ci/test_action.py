"""The composite action and a workflow that uses it: linted, and run as far as that needs no GitHub.

tests/workflow_runner.py stands in for GitHub's runner; it says what it leaves out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from safetensors.torch import load_file, save_file

from adaptool.cli.main import group
from command_line import ADAPTER, ROOT
from hub_stand_in import TOKEN, StandIn, environment
from workflow_runner import ACTION, Runner, scripts

WORKFLOW = ROOT / "fixtures" / "workflow.yml"
PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A job whose checkout holds the fixtures."""
    workspace = tmp_path / "workspace"
    shutil.copytree(ROOT / "fixtures", workspace / "fixtures")
    return Runner(workspace, tmp_path / "runner")


def _using(args: str, **more: str) -> dict[str, Any]:
    return {"uses": "./", "id": "it", "with": {"args": args, **more}}


@pytest.mark.parametrize(
    ("schema", "file"),
    [("vendor.github-actions", ACTION), ("vendor.github-workflows", WORKFLOW)],
    ids=["action", "workflow"],
)
def test_file_fits_its_schema(schema: str, file: Path) -> None:
    """The schemas that check-jsonschema brings along, of schemastore.org."""
    command = [PROGRAMS / "check-jsonschema", "--builtin-schema", schema, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_linter_has_nothing_to_say(tmp_path: Path) -> None:
    """zizmor finds expressions in scripts, actions that are not pinned, too many permissions."""
    # `uses: ./` is what every runner understands; GitHub's newer form for it is not.
    config = tmp_path / "zizmor.yml"
    config.write_text("rules: {self-repository: {disable: true}}")
    command = [PROGRAMS / "zizmor", "--offline", "--config", config, ACTION, WORKFLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_snippet_of_the_readme_fits_the_action() -> None:
    """Its inputs are the action's, and its command line is one that adaptool takes."""
    (snippet,) = re.findall(
        r"```yaml\n(- uses: .*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    (step,) = yaml.safe_load(snippet)
    assert step["uses"] == "OWNER/adaptool@COMMIT"
    assert set(step["with"]) <= set(yaml.safe_load(ACTION.read_text())["inputs"])
    name, *words = step["with"]["args"].split()
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.make_context(name, words).params["checksum"]


def test_no_script_holds_an_expression() -> None:
    """What a runner pastes into a script is run by it; the environment is only read."""
    found = [
        script
        for file in (ACTION, WORKFLOW)
        for script in scripts(yaml.safe_load(file.read_text()))
    ]
    assert len(found) == 4
    assert [script for script in found if "${{" in script] == []


def test_workflow_runs(runner: Runner) -> None:
    """Every step of fixtures/workflow.yml ends well, and leaves what it says."""
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["package"]
    assert runner.job(job["steps"]) == 0, runner.ran[-1].log
    log = runner.ran[-1].log
    assert "model-00001-of-00002.safetensors: OK" in log
    assert log.splitlines()[-1] == "build/model"
    heads = [row for row in runner.summary.read_text().splitlines() if row.startswith("### ")]
    assert [head.split()[2] for head in heads] == ["validate", "merge", "verify"]


def test_own_revision_is_installed_with_its_pins(runner: Runner) -> None:
    """torch alone from the CPU index, the rest from pip's own: nobody can put a package between."""
    assert runner.job([_using("inspect fixtures/adapter")]) == 0
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    index = ["--index-url", "https://download.pytorch.org/whl/cpu"]
    assert [[word for word in row if word] for row in runner.installed] == [
        ["install", *pins, "--no-deps", *index, "torch"],
        ["install", *pins, "--", str(ROOT)],
    ]


def test_version_that_is_asked_for_is_installed(runner: Runner) -> None:
    """As pip reads it, and never as one of pip's options."""
    step = _using("inspect fixtures/adapter", version="--index-url=x", **{"torch-index": ""})
    assert runner.job([step]) == 0
    assert [[word for word in row if word] for row in runner.installed] == [
        ["install", "--", "--index-url=x"]
    ]


def test_command_that_fails_fails_the_step(runner: Runner) -> None:
    """With its exit code; the summary and the log say why, and a later step may ask for it."""
    assert runner.job([_using("validate fixtures/adapter --target llamacpp")]) == 1
    assert "target-refused" in runner.summary.read_text()
    marked = [row for row in runner.ran[-1].log.splitlines() if row.startswith("::error")]
    assert len(marked) == 1
    assert marked[0].startswith("::error title=adaptool target-refused::fixtures/adapter/")
    assert (runner.scratch / "outputs").read_text().splitlines()[-1] == "exit-code=1"


def test_arguments_are_words_and_no_script(runner: Runner) -> None:
    """Quotes hold words together; nothing is expanded or run."""
    name = "$(touch hacked); `touch hacked` && touch hacked"
    shutil.copytree(ADAPTER, runner.workspace / name)
    assert runner.job([_using(f"inspect\n  '{name}'\n")]) == 0
    assert {path.name for path in runner.workspace.iterdir()} == {"fixtures", name}
    answer = next(runner.scratch.glob("adaptool-*.json"))
    assert json.loads(answer.read_text())["path"] == name


def test_summary_can_be_left_out(runner: Runner) -> None:
    """The answer is a file all the same."""
    assert runner.job([_using("inspect fixtures/adapter", summary="false")]) == 0
    assert not runner.summary.exists()
    assert len(list(runner.scratch.glob("adaptool-*.json"))) == 1


def test_name_of_a_stranger_is_no_workflow_command(runner: Runner) -> None:
    """Lines with `::` that a file brings along stand between stop-commands and its token."""
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    hostile = "x\n::set-output name=json::y\n##[add-mask]z"
    file = runner.workspace / "a.safetensors"
    save_file({**tensors, hostile: next(iter(tensors.values())).clone()}, file)
    assert runner.job([_using("validate a.safetensors")]) == 1
    rows = runner.ran[-1].log.splitlines()
    assert rows[0].startswith("::stop-commands::")
    token = rows[0].removeprefix("::stop-commands::")
    assert len(token) == 32
    after = rows[rows.index(f"::{token}::") + 1 :]
    assert after
    assert all(row.startswith(("::error title=adaptool ", "::warning title=")) for row in after)


def test_token_of_the_hub_comes_through_the_environment(tmp_path: Path) -> None:
    """Given to the step that uses the action; no input of the action takes one."""
    workspace = tmp_path / "workspace"
    shutil.copytree(ADAPTER, workspace / "adapter")
    step = _using("push adapter hf://me/adapter")
    with StandIn() as hub:
        runner = Runner(workspace, tmp_path / "runner", {"HUB": TOKEN})
        env = {**environment(hub), "HF_TOKEN": "${{ secrets.HUB }}"}
        assert runner.job([{**step, "env": env}]) == 0, runner.ran[-1].log
        assert hub.repos["me/adapter"].head in runner.ran[-1].log
    assert TOKEN not in "".join(each.log for each in runner.ran) + runner.summary.read_text()
    assert not any("token" in name for name in yaml.safe_load(ACTION.read_text())["inputs"])
