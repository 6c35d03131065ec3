"""Pushing to a Hub that refuses, drops, loses answers and moves: old commit or new, nothing else.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import ADAPTER, BASE, environment
from hub_stand_in import READER, TOKEN, Before, Drop, Fault, Lose, Refuse, StandIn
from hub_stand_in import environment as pointing
from in_process import ask, done, refused

FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
OLD = {**FILES, "adapter_config.json": b"{}", "README.md": b"# Mine\n\nText.\n"}
WEIGHTS = "adapter_model.safetensors"
URI = "hf://me/adapter"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A copy of the fixture adapter to spoil."""
    return Path(shutil.copytree(ADAPTER, tmp_path / "local"))


def _without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: files[name] for name in files if name not in {"README.md", ".gitattributes"}}


def test_push_then_pull_gives_the_same_bytes(hub: StandIn, tmp_path: Path) -> None:
    """Over LFS: this server has no Xet, and the client would not fall back by itself."""
    said = done("push", ADAPTER, URI, "--json").json
    assert said["commit"] == hub.repos["me/adapter"].head
    assert said["url"].startswith(f"{hub.url}/me/adapter/commit/")
    assert {row["name"] for row in said["files"]} == {*FILES, "README.md"}
    done("pull", URI, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES


def test_merged_model_is_pushed_with_its_receipt(hub: StandIn, tmp_path: Path) -> None:
    """And what is pulled again verifies."""
    done("merge", BASE, ADAPTER, tmp_path / "merged")
    done("push", tmp_path / "merged", "hf://me/model")
    files = hub.repos["me/model"].files
    card = files["README.md"].decode()
    assert "library_name: transformers" in card
    assert "made by | adaptool merge" in card
    done("pull", "hf://me/model", tmp_path / "again")
    done("verify", BASE, ADAPTER, tmp_path / "again")


def test_push_is_one_commit(hub: StandIn) -> None:
    """Whatever the number of files; the parent is the commit that was seen."""
    repo = hub.add("me/adapter", OLD)
    done("push", ADAPTER, URI)
    assert len(repo.commits) == 2
    assert len(hub.asked("POST", "/commit/")) == 1


def test_what_the_hub_and_its_client_put_beside_a_download_stays_here(
    hub: StandIn, local: Path
) -> None:
    """A directory that the Hub's client downloaded can be pushed: its own files are left behind."""
    (local / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (local / ".cache" / "huggingface").mkdir(parents=True)
    (local / ".cache" / "huggingface" / ".gitignore").write_text("*")
    said = done("push", local, URI, "--json").json
    assert {row["name"] for row in said["files"]} == {*FILES, "README.md"}
    assert hub.repos["me/adapter"].files[".gitattributes"] == b""


def test_pushing_again_changes_nothing(hub: StandIn) -> None:
    """The commit that is there is the answer; nothing large is sent again."""
    first = done("push", ADAPTER, URI, "--json").json
    second = done("push", ADAPTER, URI, "--json").json
    assert first["commit"] == second["commit"]
    assert len(hub.asked("PUT", "/lfs/")) == 1


def test_existing_card_keeps_its_text(hub: StandIn) -> None:
    """Only front matter that lacks is added; what stands there stays."""
    mine = "---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n\nText.\n"
    repo = hub.add("me/adapter", {"README.md": mine.encode()})
    done("push", ADAPTER, URI)
    card = repo.files["README.md"].decode()
    assert card == mine.replace("- mine\n", "- mine\nlibrary_name: peft\n")


def test_local_card_wins_over_the_one_there(hub: StandIn, local: Path) -> None:
    """It is part of the artifact."""
    repo = hub.add("me/adapter", OLD)
    (local / "README.md").write_text("# New\n")
    done("push", local, URI)
    assert repo.files["README.md"].decode().endswith("---\n\n# New\n")


def test_base_model_is_named_where_it_is_on_the_hub(hub: StandIn, local: Path) -> None:
    """A local path never leaves the machine by the card."""
    for base, named in (("org/base", True), ("/home/me/base", False), ("./base", False)):
        config = json.loads(FILES["adapter_config.json"]) | {"base_model_name_or_path": base}
        (local / "adapter_config.json").write_text(json.dumps(config))
        repo = hub.add("me/adapter", {})
        done("push", local, URI)
        card = repo.files["README.md"].decode()
        assert ("base_model: org/base\nbase_model_relation: adapter\n" in card) is named
        assert "/home" not in card


def test_card_with_a_path_as_its_base_is_exit_3(hub: StandIn, local: Path) -> None:
    """The Hub would refuse it after everything was uploaded."""
    (local / "README.md").write_text("---\nbase_model: /home/me/base\n---\n")
    error = refused(3, "push", local, URI)
    assert (error["field"], hub.log) == ("base_model", [])


def _pickle(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"x")


def _token(folder: Path) -> None:
    (folder / "README.md").write_text(f"login with {TOKEN}")


def _token_in_json(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text()) | {"token": TOKEN}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _stray(folder: Path) -> None:
    (folder / "credentials.json").write_text("{}")


def _git(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")


def _truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(FILES[WEIGHTS][:1000])


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_pickle, "pickle-file"),
        (_token, "secret-found"),
        (_token_in_json, "secret-found"),
        (_stray, "stray-file"),
        (_git, "stray-file"),
        (_truncated, "header-truncated"),
        (_no_config, "config-missing"),
    ],
)
def test_what_must_not_leave_is_exit_3_before_the_network(
    hub: StandIn, local: Path, spoil: Callable[[Path], None], code: str
) -> None:
    """No request is made, and the token is not repeated."""
    spoil(local)
    answer = ask("push", local, URI, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (3, code)
    assert TOKEN not in answer.out + answer.err
    assert hub.log == []


def test_clients_own_folder_is_left_behind(hub: StandIn, local: Path) -> None:
    """`hf download --local-dir` keeps its notes beside the files."""
    (local / ".cache" / "huggingface").mkdir(parents=True)
    (local / ".cache" / "huggingface" / "x.metadata").write_text("x")
    done("push", local, URI)
    assert not [name for name in hub.repos["me/adapter"].files if ".cache" in name]


def test_weights_of_another_push_are_not_mixed(hub: StandIn) -> None:
    """Exit 4: a loader would take the old shard for a part of the new model."""
    repo = hub.add("me/adapter", {"model-00001-of-00002.safetensors": b"old"})
    error = refused(4, "push", ADAPTER, URI)
    assert error["code"] == "stale-weights"
    assert len(repo.commits) == 1


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("GET", "/models/me/adapter$"),
        ("POST", "/repos/create"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/lfs/"),
        ("POST", "/commit/"),
    ],
)
def test_refusal_anywhere_is_one_line_and_exit_6(hub: StandIn, method: str, where: str) -> None:
    """The repository holds no new commit, and no token is shown."""
    hub.when(method, where, Refuse(403), times=9)
    answer = ask("push", ADAPTER, URI, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (6, "authentication")
    assert "write to me/adapter" in answer.json["error"]["hint"] or method == "GET"
    assert TOKEN not in answer.out + answer.err
    if "me/adapter" in hub.repos:
        assert len(hub.repos["me/adapter"].commits) == 1


def test_token_that_may_only_read_is_exit_6(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server says is passed on."""
    hub.add("me/adapter", OLD)
    monkeypatch.setenv("HF_TOKEN", READER)
    error = refused(6, "push", ADAPTER, URI)
    assert error["code"] == "authentication"
    assert "You need a token that may write" in str(error["message"])


def test_branch_that_moved_is_exit_6_and_kept(hub: StandIn) -> None:
    """What was pushed meanwhile is not overwritten; it is said, and what to do about it."""
    repo = hub.add("me/adapter", OLD)
    theirs = {**OLD, "note.txt": b"theirs"}
    hub.when("POST", "/commit/", Before(lambda: repo.commit(theirs)))
    error = refused(6, "push", ADAPTER, URI)
    assert (error["code"], error["retryable"]) == ("remote-moved", True)
    assert "the branch moved" in str(error["message"])
    assert "parent commit changed" in str(error["message"])
    assert "run the command again" in str(error["hint"])
    assert repo.files == theirs
    done("push", ADAPTER, URI)
    assert repo.files["note.txt"] == b"theirs"


@pytest.mark.parametrize("status", [409, 412])
def test_either_status_of_a_conflict_is_a_branch_that_moved(hub: StandIn, status: int) -> None:
    """Servers differ in which one they send."""
    repo = hub.add("me/adapter", OLD)
    hub.when("POST", "/commit/", Refuse(status))
    assert refused(6, "push", ADAPTER, URI)["code"] == "remote-moved"
    assert repo.files == OLD


@pytest.mark.parametrize("fault", [Lose(), Drop(after=5)])
def test_lost_answer_to_a_commit_is_recognised(hub: StandIn, fault: Fault) -> None:
    """The branch is read again: the commit is there, so the push is done."""
    repo = hub.add("me/adapter", OLD)
    hub.when("POST", "/commit/", fault)
    said = done("push", ADAPTER, URI, "--json").json
    assert said["commit"] == repo.head
    assert len(repo.commits) == 2


def test_commit_that_never_arrives_is_exit_6(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retryable, after a few tries: the branch is where it was."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    repo = hub.add("me/adapter", OLD)
    hub.when("POST", "/commit/", Refuse(503), times=99)
    error = refused(6, "push", ADAPTER, URI)
    assert (error["code"], error["retryable"], repo.files) == ("network", True, OLD)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("more", [[], ["--create-pr"]])
def test_commit_that_is_refused_for_now_is_asked_for_again(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, status: int, more: list[str]
) -> None:
    """As Retry-After says, and once; a pull request only where it is known that none was made."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    repo = hub.add("me/adapter", OLD)
    hub.when("POST", "/commit/", Refuse(status, {"Retry-After": "7"}))
    answer = ask("push", ADAPTER, URI, *more)
    made = (answer.code, len(repo.commits), waits)
    assert made == ((6, 1, []) if more and status == 503 else (0, 2, [7.0]))


@pytest.mark.parametrize("fault", [Refuse(429, {"Retry-After": "0"}), Refuse(502), Lose()])
def test_repository_is_made_although_the_first_answer_fails(hub: StandIn, fault: Fault) -> None:
    """Where the answer was lost, the second try finds it there."""
    hub.when("POST", "/repos/create", fault)
    done("push", ADAPTER, URI, "--private")
    assert hub.repos["me/adapter"].private
    assert _without_card(hub.repos["me/adapter"].files) == FILES


def test_private_repository_is_made_and_a_public_one_refused(hub: StandIn) -> None:
    """Exit 4 rather than publishing what was meant to be private."""
    done("push", ADAPTER, URI, "--private")
    assert hub.repos["me/adapter"].private
    hub.add("me/public", OLD)
    refused(4, "push", ADAPTER, "hf://me/public", "--private")
    assert hub.repos["me/public"].files == OLD


def test_pull_request_leaves_the_branch(hub: StandIn) -> None:
    """The commit is on the request's own branch, its address is the answer's."""
    repo = hub.add("me/adapter", OLD)
    said = done("push", ADAPTER, URI, "--create-pr", "--message", "Better", "--json").json
    assert (repo.files, repo.requests) == (OLD, ["Better"])
    assert said["url"].endswith("/discussions/1")
    assert repo.commits[said["commit"]][WEIGHTS] == FILES[WEIGHTS]


def test_commit_is_no_branch(hub: StandIn) -> None:
    """Exit 2."""
    assert refused(2, "push", ADAPTER, f"{URI}@{'0' * 40}")["code"] == "usage"
    assert hub.log == []


def test_folder_of_a_repository_takes_an_adapter(hub: StandIn, tmp_path: Path) -> None:
    """Beside others; the card of the repository is left alone."""
    repo = hub.add("me/many", {"README.md": b"# All\n"})
    done("push", ADAPTER, "hf://me/many/style")
    assert set(repo.files) == {"README.md", *(f"style/{name}" for name in FILES)}
    done("pull", "hf://me/many/style", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("request_number", range(0, 12, 2))
def test_push_killed_at_any_request_leaves_the_old_or_the_new(
    hub: StandIn, request_number: int
) -> None:
    """kill -9 while the server is being asked; the next run completes."""
    repo = hub.add("me/adapter", OLD)
    running: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        if len(hub.log) == request_number + 1:
            os.kill(running[0].pid, signal.SIGKILL)

    for method in ("GET", "POST", "PUT"):
        hub.when(method, "", Before(kill), times=99)
    command = [sys.executable, "-m", "adaptool", "push", str(ADAPTER), URI]
    env = environment(pointing(hub))
    running.append(
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    )
    running[0].communicate(timeout=60)
    hub.settle()
    assert repo.files == OLD or _without_card(repo.files) == FILES
    done("push", ADAPTER, URI)
    assert _without_card(repo.files) == FILES
