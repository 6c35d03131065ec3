"""Repositories as they can be: no main, slashes, empty, one file, the same again; what is told.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import ADAPTER, BASE
from hub_stand_in import READER, Drop, StandIn, at_hand
from in_process import done, refused

# The client hands its upload to its HTTP library in a way that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
URI = "hf://me/adapter"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with the fixture's adapter, and a token that may write there."""
    with StandIn() as server:
        server.add("me/adapter", FILES)
        at_hand(monkeypatch, server)
        yield server


def _codes(said: dict[str, Any]) -> list[str]:
    return [each["code"] for each in said["findings"]]


def test_slash_in_a_branch_is_written_as_the_client_writes_it(hub: StandIn, tmp_path: Path) -> None:
    """%2F, when reading, writing and in the receipt; else it begins a folder, and that is said."""
    commit = hub.repos["me/adapter"].commit(FILES, branch="feature/x")
    said = done("pull", f"{URI}@feature%2Fx", tmp_path / "out", "--json").json
    assert said["commit"] == commit
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert receipt["pulled"]["uri"] == f"{URI}@feature%2Fx"
    pushed = done("push", ADAPTER, f"{URI}@feature%2Fx", "--json").json
    assert hub.repos["me/adapter"].branches["feature/x"] == pushed["commit"] != commit
    assert "%2F" in str(refused(6, "inspect", f"{URI}@feature/x")["hint"])


def test_repository_without_main_asks_for_a_branch(hub: StandIn) -> None:
    """The default branch is what is missing, although no revision was written."""
    hub.repos["me/adapter"].branches = {"trunk": hub.repos["me/adapter"].head}
    error = refused(6, "inspect", URI)
    assert error["code"] == "not-found"
    assert f"{URI}@BRANCH" in str(error["hint"])
    assert done("inspect", f"{URI}@trunk", "--json").json["module_count"] == 14


def test_empty_repository_is_called_empty(hub: StandIn, tmp_path: Path) -> None:
    """No file name is missed where none was given."""
    hub.add("me/empty", {})
    error = refused(6, "pull", "hf://me/empty", tmp_path / "out")
    assert (error["code"], error["message"]) == ("not-found", "the repository is empty")


def test_refused_pull_leaves_nothing_and_one_that_broke_off_what_came(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a gated repository no byte comes: there is nothing to go on with."""
    monkeypatch.setenv("HF_TOKEN", READER)
    hub.repos["me/adapter"].gated = True
    assert refused(6, "pull", URI, tmp_path / "out")["code"] == "gated"
    assert list(tmp_path.iterdir()) == []
    hub.repos["me/adapter"].gated = False
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=1000), times=1)
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(), times=6)
    monkeypatch.setattr("time.sleep", lambda _: None)
    refused(6, "pull", URI, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.adaptool-partial"]


def test_one_file_of_a_repository_has_the_config_beside_it(hub: StandIn, tmp_path: Path) -> None:
    """As a local file has: inspect, merge and pull know the scale."""
    del hub
    file = f"{URI}/{WEIGHTS}"
    assert done("inspect", file, "--json").json["scaling"]["max"] == 2
    done("merge", BASE, file, tmp_path / "there")
    done("merge", BASE, ADAPTER, tmp_path / "here")
    for shard in (tmp_path / "here").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "there" / shard.name).read_bytes()
    done("pull", file, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "adaptool.json"}


def test_pushed_file_takes_the_config_along_that_it_needs(hub: StandIn, tmp_path: Path) -> None:
    """What was seen to be whole here is whole there; a file with its own config goes alone."""
    done("push", ADAPTER / WEIGHTS, "hf://me/one")
    assert {*FILES} <= {*hub.repos["me/one"].files}
    assert done("inspect", "hf://me/one", "--json").json["module_count"] == 14
    done("convert", ADAPTER, tmp_path / "own.safetensors", "--to", "peft")
    (tmp_path / CONFIG).write_text("{}")
    done("push", tmp_path / "own.safetensors", "hf://me/own")
    assert CONFIG not in hub.repos["me/own"].files


def test_what_is_there_already_is_not_committed_again_and_that_is_said(hub: StandIn) -> None:
    """push, with and without a pull request, and merge: one commit, then a note."""
    for command in (("push", ADAPTER), ("merge", BASE, ADAPTER)):
        uri = f"hf://me/{command[0]}ed"
        assert _codes(done(*command, uri, "--json").json) == []
        commits = len(hub.repos[uri.removeprefix("hf://")].commits)
        assert _codes(done(*command, uri, "--json").json) == ["nothing-to-do"]
        assert len(hub.repos[uri.removeprefix("hf://")].commits) == commits
    said = done("push", ADAPTER, "hf://me/pushed", "--create-pr", "--json").json
    assert _codes(said) == ["nothing-to-do"]


def test_push_to_a_branch_that_is_not_there_says_how_to_make_it(hub: StandIn) -> None:
    """The client does not make branches while it pushes."""
    error = refused(6, "push", ADAPTER, f"{URI}@dev")
    assert error["hint"] == "make it first: hf repos branch create me/adapter dev"
    assert "dev" not in hub.repos["me/adapter"].branches


def test_offline_nothing_can_be_pushed_whatever_the_cache_holds(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6 at once, and not for a cache that is of no use here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for command in (("push", ADAPTER), ("merge", BASE, ADAPTER)):
        error = refused(6, *command, URI)
        assert (error["code"], error["hint"]) == ("offline", "unset HF_HUB_OFFLINE")
    assert hub.log == []


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1"])
def test_endpoint_that_is_no_address_is_not_tried_again(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """It stays wrong: exit 6, not retryable, and the variable is named."""
    del hub
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    error = refused(6, "inspect", URI)
    assert (error["code"], error["retryable"]) == ("network", False)
    assert "HF_ENDPOINT" in str(error["hint"])


def test_weights_under_other_names_are_named_in_the_hint(hub: StandIn) -> None:
    """An adapter's config beside a file of another name: that file can be addressed."""
    hub.add("me/other", {CONFIG: FILES[CONFIG], "step-100.safetensors": FILES[WEIGHTS]})
    error = refused(2, "inspect", "hf://me/other")
    assert error["hint"] == "name one of its files: hf://me/other/step-100.safetensors"
    found = done("inspect", "hf://me/other/step-100.safetensors", "--json").json
    assert found["scaling"]["max"] == 2


@pytest.mark.parametrize(
    "front",
    [": [", "a: b: c", "- x", "3", "{", "model-index: 3", "model-index: [{}]", "base_model: /a/b"],
)
def test_card_that_cannot_be_read_is_refused_by_its_address(hub: StandIn, front: str) -> None:
    """Exit 3 with the card's place there, before anything is sent; nothing is a bug's exit 70."""
    head = hub.repos["me/adapter"].commit({**FILES, "README.md": f"---\n{front}\n---\nx".encode()})
    error = refused(3, "push", ADAPTER, URI)
    assert error["file"] == f"{URI}: README.md"
    assert hub.repos["me/adapter"].head == head


def test_token_that_fits_into_no_header_is_the_tokens_fault(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6 about the token, not about the Hub; the token is not shown."""
    del hub
    monkeypatch.setenv("HF_TOKEN", "hf_ünïcödé")
    error = refused(6, "inspect", URI)
    assert error["code"] == "authentication"
    assert "ünï" not in str(error)


def test_pull_says_which_shards_the_repository_lacks(hub: StandIn, tmp_path: Path) -> None:
    """What there is comes, with a warning; a model that is whole is pulled without one."""
    files = {path.name: path.read_bytes() for path in BASE.iterdir()}
    hub.add("me/whole", files)
    assert _codes(done("pull", "hf://me/whole", tmp_path / "whole", "--json").json) == []
    lost = "model-00002-of-00002.safetensors"
    hub.add("me/part", {name: raw for name, raw in files.items() if name != lost})
    (finding,) = done("pull", "hf://me/part", tmp_path / "part", "--json").json["findings"]
    assert (finding["code"], finding["severity"]) == ("shard-missing", "warning")
    assert finding["message"].endswith(f": {lost}")
    hub.add("me/bad", {**files, "model.safetensors.index.json": b"[]"})
    assert _codes(done("pull", "hf://me/bad", tmp_path / "bad", "--json").json) == []


def test_card_of_an_unmerged_model_names_the_model_it_comes_from(hub: StandIn) -> None:
    """Address and commit, as those of every other input."""
    commit = done("merge", BASE, ADAPTER, "hf://me/merged", "--json").json["commit"]
    done("unmerge", "hf://me/merged", ADAPTER, "hf://me/back")
    card = hub.repos["me/back"].files["README.md"].decode()
    assert f"| merged | merged |  | hf://me/merged at {commit[:12]} |" in card
