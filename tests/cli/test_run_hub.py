"""Recipes that pull and push, with the real client. The Hub is the stand-in of hub_stand_in.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import ADAPTER, ROOT
from hub_stand_in import StandIn, at_hand

Adaptool = Callable[..., Any]
FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
RECIPE = """\
schema: 1
variables: {from: "hf://me/adapter"}
steps:
  - name: given
    pull: {uri: "${from}", out: build/given}
  - name: slim
    resize: {adapter: "${steps.given.out}", out: build/slim, rank: 2}
  - validate: {path: build/slim}
  - push: {path: build/slim, uri: hf://me/slim, message: "rank 2"}
"""
STEPS = ["given", "slim", "validate", "push"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with the fixture adapter on it, and a directory with the recipe above."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    with StandIn() as server:
        server.add("me/adapter", FILES)
        at_hand(monkeypatch, server)
        yield server


def _done(said: Any) -> list[str]:
    assert {step["status"] for step in said["steps"]} <= {"done", "skipped"}
    return [step["name"] for step in said["steps"] if step["status"] == "done"]


def test_what_was_pulled_is_pushed_once(adaptool: Adaptool, hub: StandIn) -> None:
    """The second run asks for two commits and makes none."""
    said = adaptool("run", "r.yaml")
    assert _done(said) == STEPS
    head = hub.repos["me/slim"].head
    assert said["steps"][3]["result"]["commit"] == head
    hub.log.clear()
    assert _done(adaptool("run", "r.yaml")) == []
    assert hub.repos["me/slim"].head == head
    assert hub.asked("GET", "/resolve/") == hub.asked("POST", "/commit/") == []


def test_branch_that_moved_is_pulled_again(adaptool: Adaptool, hub: StandIn) -> None:
    """The commit counts, not the branch; once more, and nothing is left to do."""
    adaptool("run", "r.yaml")
    hub.repos["me/adapter"].commit({**FILES, "README.md": b"# New\n"})
    assert _done(adaptool("run", "r.yaml"))[0] == "given"
    assert Path("build/given/README.md").read_text() == "# New\n"
    assert _done(adaptool("run", "r.yaml")) == []


def test_pinned_commit_is_not_asked_for(adaptool: Adaptool, hub: StandIn) -> None:
    """A commit means itself: a rerun without push makes no request at all."""
    Path("r.yaml").write_text(RECIPE.partition("  - push")[0])
    pinned = f"from=hf://me/adapter@{hub.repos['me/adapter'].head}"
    assert _done(adaptool("run", "r.yaml", "--set", pinned)) == STEPS[:3]
    hub.log.clear()
    assert _done(adaptool("run", "r.yaml", "--set", pinned)) == []
    assert hub.log == []


def test_target_that_moved_is_pushed_to_again(adaptool: Adaptool, hub: StandIn) -> None:
    """What was pushed is no longer what the branch has."""
    adaptool("run", "r.yaml")
    repo = hub.repos["me/slim"]
    repo.commit({"README.md": b"# Another\n"})
    assert _done(adaptool("run", "r.yaml")) == ["push"]
    assert _done(adaptool("run", "r.yaml")) == []
    del hub.repos["me/slim"]
    assert _done(adaptool("run", "r.yaml")) == ["push"]


def test_address_can_be_an_input(adaptool: Adaptool, hub: StandIn) -> None:
    """The commit that it means now is what counts as unchanged."""
    Path("r.yaml").write_text(
        "schema: 1\nsteps: [{resize: {adapter: hf://me/adapter, out: build/slim, rank: 2}}]\n"
    )
    assert _done(adaptool("run", "r.yaml")) == ["resize"]
    assert _done(adaptool("run", "r.yaml")) == []
    hub.repos["me/adapter"].commit({**FILES, "README.md": b"# New\n"})
    assert _done(adaptool("run", "r.yaml")) == ["resize"]


def test_missing_repository_fails_the_step_with_exit_6(adaptool: Adaptool, hub: StandIn) -> None:
    """As pull alone would; nothing after it runs."""
    del hub.repos["me/adapter"]
    said = adaptool("run", "r.yaml", code=6)
    assert [step["status"] for step in said["steps"]] == ["failed", *["not-run"] * 3]
    assert said["error"]["file"] == "hf://me/adapter"


def test_output_on_the_hub_can_be_an_input_of_a_later_step(
    adaptool: Adaptool, hub: StandIn
) -> None:
    """merge writes one commit there, which counts for what it made, and pull takes it."""
    Path("r.yaml").write_text(
        "schema: 1\n"
        "steps:\n"
        "  - name: made\n"
        "    merge: {base: fixtures/base, adapter: hf://me/adapter, out: hf://me/merged}\n"
        '  - pull: {uri: "${steps.made.out}", out: build/merged}\n'
        "  - verify: {base: fixtures/base, adapter: hf://me/adapter, merged: build/merged}\n"
    )
    said = adaptool("run", "r.yaml")
    assert _done(said) == ["made", "pull", "verify"]
    head = hub.repos["me/merged"].head
    assert said["steps"][1]["result"]["commit"] == head
    assert _done(adaptool("run", "r.yaml")) == []
    assert hub.repos["me/merged"].head == head
