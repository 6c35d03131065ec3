"""kill -9 at every single request of a push: the branch is at the old commit or at the new one.

The Hub is the stand-in of tests/hub_stand_in.py, which kills the process when the n-th request
comes; client, command line and signal are the real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from command_line import ADAPTER, environment
from hub_stand_in import Before, Refuse, Repo, StandIn
from hub_stand_in import environment as pointing
from hub_xet import needs_local_store
from in_process import done, refused

FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
OLD = {"adapter_model.safetensors": b"old", "README.md": b"# Mine\n"}
URI = "hf://me/adapter"


@pytest.fixture(params=["lfs", "lfs in parts", "xet"])
def transport(hub: StandIn, tmp_path: Path, request: pytest.FixtureRequest) -> StandIn:
    """The three ways that large files go."""
    if request.param == "xet":
        hub.xet = needs_local_store(tmp_path / "store")
    hub.part_size = 30_000 if request.param == "lfs in parts" else None
    return hub


def _killed_at(hub: StandIn, number: int) -> bool:
    """Runs a push that is killed when request `number` (from 0) comes; whether there was one."""
    running: list[subprocess.Popen[bytes]] = []
    hub.log.clear()

    def kill() -> None:
        if len(hub.log) == number + 1:
            os.kill(running[0].pid, signal.SIGKILL)

    hub.forget()
    for method in ("GET", "POST", "PUT"):
        hub.when(method, "", Before(kill), times=99)
    command = [sys.executable, "-m", "adaptool", "push", str(ADAPTER), URI]
    env = environment(pointing(hub))
    running.append(
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    )
    _, told = running[0].communicate(timeout=60)
    hub.settle()
    hub.forget()
    assert running[0].returncode in {0, -signal.SIGKILL}, told
    return running[0].returncode != 0


def _outcome(repo: Repo) -> str:
    """Which of the two commits the branch is at; nothing else is allowed."""
    if repo.files == OLD:
        return "old"
    assert {name: repo.files[name] for name in FILES} == FILES
    assert set(repo.files) == {*FILES, "README.md"}
    assert len(repo.commits) == 2
    return "new"


@pytest.mark.slow
def test_push_killed_at_every_request_leaves_the_old_or_the_new(transport: StandIn) -> None:
    """Old until the commit is asked for, new from then on; the next push completes either."""
    outcomes = []
    for number in count():
        repo = transport.add("me/adapter", OLD)
        transport.stored.clear()
        transport.parts.clear()
        if not _killed_at(transport, number):
            break
        outcomes.append(_outcome(repo))
        done("push", ADAPTER, URI)
        assert _outcome(repo) == "new"
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"old", "new"}
    assert len(outcomes) >= 8


def test_push_after_one_that_broke_off_sends_nothing_large_again(transport: StandIn) -> None:
    """What was uploaded before the commit failed is still there."""
    repo = transport.add("me/adapter", OLD)
    transport.when("POST", "/commit/", Refuse(403))
    assert refused(6, "push", ADAPTER, URI)["code"] == "authentication"
    assert _outcome(repo) == "old"
    sent = len(transport.asked("PUT", "/lfs/"))
    chunks = transport.xet.chunk_bytes() if transport.xet else None
    assert sent > 0 or chunks
    done("push", ADAPTER, URI)
    assert _outcome(repo) == "new"
    assert len(transport.asked("PUT", "/lfs/")) == sent
    assert chunks is None or (transport.xet and transport.xet.chunk_bytes() == chunks)
