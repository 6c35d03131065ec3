"""Where addresses of the Hub can stand in a recipe, and where they are refused before any step.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import adaptool as library
from adaptool.errors import MismatchError
from command_line import ADAPTER, BASE
from hub_stand_in import StandIn, at_hand

Adaptool = Callable[..., Any]
FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with the fixture adapter on it, and an empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    with StandIn() as server:
        server.add("me/adapter", FILES)
        at_hand(monkeypatch, server)
        yield server


def _recipe(*steps: str) -> str:
    Path("r.yaml").write_text("schema: 1\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))
    return "r.yaml"


@pytest.mark.parametrize(
    "step",
    [
        "pull: {uri: hf://me/adapter, out: hf://me/other}",
        "push: {path: hf://me/adapter, uri: hf://me/other}",
        f"merge: {{base: {BASE}, adapter: {ADAPTER}, out: out, bom: hf://me/other}}",
    ],
)
def test_address_where_a_path_must_stand_is_refused_before_the_first_step(
    adaptool: Adaptool, hub: StandIn, step: str
) -> None:
    """Exit 2 with the line, and no directory called `hf:`."""
    said = adaptool("run", _recipe(step), code=2)
    assert "hf://me/" in said["error"]["message"]
    assert "path of this machine" in said["error"]["message"]
    assert said["error"]["file"] == "r.yaml:3"
    assert hub.log == []
    assert [path.name for path in Path().iterdir()] == ["r.yaml"]


def test_library_refuses_what_the_command_line_refuses(hub: StandIn) -> None:
    """pull to an address and push from one: exit 4, and no directory called `hf:`."""
    with pytest.raises(MismatchError, match="path of this machine"):
        library.pull("hf://me/adapter", "hf://me/other")
    with pytest.raises(MismatchError, match="path of this machine"):
        library.push("hf://me/adapter", "hf://me/other")
    assert hub.log == []


def test_bad_address_is_named(adaptool: Adaptool, hub: StandIn) -> None:
    """The error of a line has the text that it is about."""
    del hub
    said = adaptool("run", _recipe("pull: {uri: me/adapter, out: x}"), code=2)
    assert said["error"]["message"].startswith("me/adapter: is no repository")


def test_pull_request_may_go_to_the_repository_that_was_pulled(
    adaptool: Adaptool, hub: StandIn
) -> None:
    """It changes no branch; a push onto the branch that an earlier step reads is refused."""
    steps = (
        "pull: {uri: hf://me/adapter, out: given}",
        "resize: {adapter: given, out: slim, rank: 2}",
    )
    head = hub.repos["me/adapter"].head
    push = "push: {path: slim, uri: hf://me/adapter, create-pr: true}"
    assert adaptool("run", _recipe(*steps, push))["ok"] is True
    assert hub.repos["me/adapter"].head == head
    again = adaptool("run", "r.yaml")
    assert {step["status"] for step in again["steps"]} == {"skipped"}
    said = adaptool("run", _recipe(*steps, push.replace(", create-pr: true", "")), code=3)
    assert "comes later" in said["error"]["message"]


def test_variable_that_is_set_twice_is_refused(adaptool: Adaptool, hub: StandIn) -> None:
    """Exit 2: which of the two was meant, nobody knows."""
    del hub
    Path("r.yaml").write_text("schema: 1\nvariables: {a: x}\nsteps: [{inspect: {path: '${a}'}}]\n")
    said = adaptool("run", "r.yaml", "--set", "a=1", "--set", "a=2", code=2)
    assert "'a' is given 2 times" in said["error"]["message"]


def test_page_of_the_hub_is_told_its_address(adaptool: Adaptool, hub: StandIn) -> None:
    """What a browser shows is not what is read: exit 4, with what to write."""
    del hub
    page = "https://huggingface.co/me/adapter/tree/main"
    said = adaptool("inspect", page, code=4)
    assert said["error"]["hint"] == "write hf://me/adapter"
