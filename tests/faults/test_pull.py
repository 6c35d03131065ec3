"""Pulling from a Hub that drops, refuses, corrupts and moves: the documented outcome of each.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from command_line import ADAPTER, environment
from hub_stand_in import READER, TOKEN, Before, Corrupt, Drop, Refuse, Repo, StandIn, at_hand
from hub_stand_in import environment as pointing
from in_process import ask, done, refused

FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
WEIGHTS = "adapter_model.safetensors"
URI = "hf://me/adapter"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with the fixture adapter on it."""
    with StandIn() as server:
        server.add("me/adapter", FILES)
        at_hand(monkeypatch, server, READER)
        yield server


def _pulled(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "adaptool.json"}


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (401, {}, "authentication"),
        (403, {}, "authentication"),
        (403, {"X-Error-Code": "GatedRepo"}, "gated"),
        (404, {"X-Error-Code": "RepoNotFound"}, "not-found"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "not-found"),
        (404, {"X-Error-Code": "EntryNotFound"}, "not-found"),
    ],
)
def test_refusal_is_one_line_and_exit_6(
    hub: StandIn, tmp_path: Path, status: int, headers: dict[str, str], code: str
) -> None:
    """Whichever request is refused: not retried, nothing written, a hint, no token."""
    for where in ("/models/me/adapter$", "/tree/", "/resolve/"):
        hub.log.clear()
        hub.when("GET", where, Refuse(status, headers))
        answer = ask("pull", URI, tmp_path / "out", "--json")
        error = answer.json["error"]
        assert (answer.code, error["code"], error["retryable"]) == (6, code, False)
        assert error["hint"]
        assert READER not in answer.out + answer.err
        assert len(hub.asked("GET", where)) == 1
        assert not (tmp_path / "out").exists()


def test_missing_repository_and_revision_say_which(hub: StandIn, tmp_path: Path) -> None:
    """Exit 6."""
    del hub
    assert refused(6, "pull", "hf://me/none", tmp_path / "out")["message"] == "no such repository"
    found = refused(6, "pull", f"{URI}@none", tmp_path / "out")
    assert found["message"] == "no such revision"


def test_gated_and_private_repositories_need_the_right_token(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The licence's address is in the hint; with the right token it works."""
    hub.add("me/gated", FILES, gated=True)
    hub.add("me/private", FILES, private=True)
    error = refused(6, "pull", "hf://me/gated", tmp_path / "gated")
    assert (error["code"], f"{hub.url}/me/gated" in str(error["hint"])) == ("gated", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done("pull", "hf://me/gated", tmp_path / "gated")
    done("pull", "hf://me/private", tmp_path / "private")


def test_wrong_token_is_named_but_not_shown(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6 by authentication."""
    del hub
    monkeypatch.setenv("HF_TOKEN", "hf_" + "NobodyKnowsThisToken0000")
    answer = ask("pull", URI, tmp_path / "out")
    assert answer.code == 6
    assert "Invalid credentials" in answer.err
    assert "NobodyKnows" not in answer.out + answer.err


def test_offline_mode_is_exit_6(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own switch is honoured: no request is made."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"], hub.log) == ("offline", False, [])


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("where", ["/models/me/adapter$", "/resolve/"])
def test_refusal_for_now_is_tried_again(
    hub: StandIn, tmp_path: Path, status: int, where: str
) -> None:
    """As long as the server asks for: here, at once."""
    hub.when("GET", where, Refuse(status, {"Retry-After": "0"}), times=3)
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES


def test_rate_limit_that_stays_is_exit_6_and_retryable(hub: StandIn, tmp_path: Path) -> None:
    """A long Retry-After is not waited for but told."""
    hub.when("GET", "/resolve/", Refuse(429, {"Retry-After": "3600"}), times=99)
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"]) == ("rate-limited", True)
    assert "3600 seconds" in str(error["hint"])


def test_server_that_is_gone_is_exit_6_and_retryable(hub: StandIn, tmp_path: Path) -> None:
    """One that answers 503 to the end."""
    hub.when("GET", "/models/me/adapter$", Refuse(503, {"Retry-After": "0"}), times=99)
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"]) == ("network", True)


def test_dropped_connection_goes_on_where_it_broke_off(hub: StandIn, tmp_path: Path) -> None:
    """With a Range, and the bytes are the same."""
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=30_000))
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES
    asked = hub.asked("GET", f"/resolve/.*{WEIGHTS}")
    ranges = [each.headers.get("range") for each in asked]
    assert ranges == [None, "bytes=30000-"]


def test_same_size_with_other_bytes_is_exit_9(hub: StandIn, tmp_path: Path) -> None:
    """LFS files by sha256, small ones by git's name; the client alone takes them."""
    for name in FILES:
        hub.when("GET", f"/resolve/.*{name}", Corrupt())
        error = refused(9, "pull", URI, tmp_path / "out")
        assert (error["code"], name in str(error["file"])) == ("integrity", True)
        assert _left(tmp_path) == []


def test_file_that_is_longer_is_exit_9(hub: StandIn, tmp_path: Path) -> None:
    """More bytes than the commit's tree names are not that file."""
    files = hub.repos["me/adapter"].files
    longer = {WEIGHTS: FILES[WEIGHTS] + b"x"}
    hub.when("GET", "/resolve/", Before(lambda: files.update(longer)))
    assert refused(9, "pull", URI, tmp_path / "out")["code"] == "integrity"
    assert _left(tmp_path) == []


def test_short_body_is_exit_6_and_the_next_run_completes(hub: StandIn, tmp_path: Path) -> None:
    """A file that ends early, by the server's own count of its bytes: it may be whole next time."""
    files = hub.repos["me/adapter"].files
    hub.when("GET", "/resolve/", Before(lambda: files.update({WEIGHTS: FILES[WEIGHTS][:-9]})))
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"]) == ("network", True)
    size = len(FILES[WEIGHTS])
    assert error["message"] == f"ended after {size - 9} of {size} bytes"
    assert not (tmp_path / "out").exists()
    files.update(FILES)
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES


def test_branch_that_moves_meanwhile_changes_nothing(hub: StandIn, tmp_path: Path) -> None:
    """The commit is pinned first: what is pulled is of one commit."""
    repo: Repo = hub.repos["me/adapter"]
    first = repo.head
    hub.when("GET", "/tree/", Before(lambda: repo.commit({"adapter_config.json": b"{}"})))
    said = done("pull", URI, tmp_path / "out", "--json").json
    assert (said["commit"], repo.head != first) == (first, True)
    assert _pulled(tmp_path / "out") == FILES
    assert all(first in each.path for each in hub.asked("GET", "/resolve/"))


def test_tree_of_several_pages_is_read_whole(hub: StandIn, tmp_path: Path) -> None:
    """The server says by a Link header that there is more."""
    hub.page = 1
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "a/../../evil.json",
        "/etc/evil.json",
        "\\\\server\\share\\evil.json",
        "C:\\evil.json",
        "a\\b.json",
        ".git/config",
        "sub/.CACHE/x.json",
        "a//b.json",
        "./a.json",
        "a/" + "x" * 300 + ".json",
        "a\x1b[31m.json",
        "gpj\u202eeson.a",
    ],
)
def test_hostile_name_is_exit_3(hub: StandIn, tmp_path: Path, name: str) -> None:
    """Anywhere in the tree: nothing is downloaded or written, and no terminal acts on it."""
    hub.repos["me/adapter"].commit({**FILES, name: b"{}"})
    answer = ask("pull", URI, tmp_path / "out", "--json")
    assert (answer.code, answer.json["error"]["code"]) == (3, "path-unsafe")
    assert not {"\x1b", "\u202e"} & set(answer.out + answer.err)
    assert (_left(tmp_path), hub.asked("GET", "/resolve/")) == ([], [])


def test_names_that_differ_in_case_only_are_exit_3(hub: StandIn, tmp_path: Path) -> None:
    """On some systems one of the two would replace the other."""
    content = FILES[WEIGHTS]
    hub.add("me/model", {"model-1.safetensors": content, "MODEL-1.safetensors": content})
    error = refused(3, "pull", "hf://me/model", tmp_path / "out")
    assert (error["code"], "differ only in case" in str(error["message"])) == ("path-unsafe", True)


def test_link_in_the_tree_is_not_followed(hub: StandIn, tmp_path: Path) -> None:
    """As a link in the tree would make it: what lies below is never followed."""
    (tmp_path / "elsewhere").mkdir()
    files = {**FILES, "link": str(tmp_path / "elsewhere").encode(), "link/evil.json": b"{}"}
    hub.repos["me/adapter"].commit(files)
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES
    assert _left(tmp_path / "elsewhere") == []


def test_only_what_is_needed_is_downloaded(hub: StandIn, tmp_path: Path) -> None:
    """Checkpoints, optimizers and other forms of the weights stay where they are."""
    more = {"optimizer.pt": b"x", "checkpoint-5/adapter_model.safetensors": b"x", "runs/x": b"x"}
    hub.repos["me/adapter"].commit({**FILES, **more})
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES
    assert len(hub.asked("GET", "/resolve/")) == len(FILES)


def test_repository_of_pickles_only_is_exit_3_and_says_what_helps(
    hub: StandIn, tmp_path: Path
) -> None:
    """Nothing of it is downloaded unasked."""
    config = {"adapter_config.json": FILES["adapter_config.json"]}
    hub.repos["me/adapter"].commit({**config, "adapter_model.bin": b"x"})
    error = refused(3, "pull", URI, tmp_path / "out")
    assert (error["code"], "--allow-pickle" in str(error["hint"])) == ("pickle-only", True)
    assert (_left(tmp_path), hub.asked("GET", "/resolve/")) == ([], [])


def test_pull_that_broke_off_is_taken_up(hub: StandIn, tmp_path: Path) -> None:
    """The next run downloads only what is missing."""
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=50_000), times=1)
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Refuse(403), times=1)
    refused(6, "pull", URI, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = hub.sent
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES
    assert hub.sent - before < len(FILES[WEIGHTS]) - 40_000
    assert _left(tmp_path) == [".out.adaptool.lock", "out"] or _left(tmp_path) == ["out"]


def _start(arguments: Sequence[str | Path], hub: StandIn) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "adaptool", *map(str, arguments)]
    env = environment(pointing(hub, READER))
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("request_number", range(4))
def test_pull_killed_at_any_request_leaves_nothing_or_all(
    hub: StandIn, tmp_path: Path, request_number: int
) -> None:
    """kill -9 while the server is being asked; the next run completes."""
    running: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        if len(hub.log) == request_number + 1:
            os.kill(running[0].pid, signal.SIGKILL)

    hub.when("GET", "", Before(kill), times=99)
    running.append(_start(["pull", URI, tmp_path / "out"], hub))
    running[0].communicate(timeout=60)
    assert running[0].returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES


def test_output_that_is_there_is_exit_5(hub: StandIn, tmp_path: Path) -> None:
    """A directory with files, a symlink to one; before a byte is downloaded."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for out in ("mine", "link"):
        assert refused(5, "pull", URI, tmp_path / out)["code"] == "output-exists"
        assert refused(5, "pull", URI, tmp_path / out, "--overwrite")["code"] == "output-exists"
    assert hub.asked("GET", "/resolve/") == []
    assert _left(tmp_path / "mine") == ["thesis.txt"]


def test_receipt_of_what_was_pulled_stays(hub: StandIn, tmp_path: Path) -> None:
    """A merged model's receipt is what verify reads; the commit is put beside it."""
    made = {"schema": 1, "command": "merge", "options": {"weights": [1.0]}, "outputs": []}
    hub.repos["me/adapter"].commit({**FILES, "adaptool.json": json.dumps(made).encode()})
    done("pull", URI, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert (receipt["command"], receipt["options"]) == ("merge", {"weights": [1.0]})
    assert receipt["pulled"]["commit"] == hub.repos["me/adapter"].head
    assert {each["name"] for each in receipt["outputs"]} == set(FILES)
    done("pull", URI, tmp_path / "out", "--overwrite")


def test_clients_cache_is_used_where_it_is_right(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client has downloaded before is not downloaded again; damaged, it is."""
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = hub.repos["me/adapter"].head
    cached = hf_hub_download("me/adapter", WEIGHTS, revision=commit, endpoint=hub.url)
    before = hub.sent
    done("pull", URI, tmp_path / "out")
    assert hub.sent - before < len(FILES[WEIGHTS])
    Path(cached).write_bytes(bytes(len(FILES[WEIGHTS])))
    done("pull", URI, tmp_path / "again")
    assert _pulled(tmp_path / "again") == _pulled(tmp_path / "out") == FILES
