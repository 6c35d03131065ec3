"""Every flag of `pull` and `push`, through the real command line and the real client.

The Hub is the stand-in of tests/hub_stand_in.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from command_line import ADAPTER
from hub_stand_in import StandIn

Adaptool = Callable[..., Any]
URI = "hf://me/adapter"
FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}


def test_pull_json(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Where it is, which commit, and each file with its digest."""
    said = adaptool("pull", "--json", f"{URI}@main", tmp_path / "out")
    commit = hub.repos["me/adapter"].head
    assert (said["schema"], said["repo"], said["commit"]) == (1, "me/adapter", commit)
    assert said["out"] == str(tmp_path / "out")
    assert [(row["name"], row["bytes"]) for row in said["files"]] == sorted(
        (name, len(content)) for name, content in FILES.items()
    )
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert receipt["outputs"] == said["files"]
    assert receipt["pulled"] == {"uri": f"{URI}@main", "repo": "me/adapter", "commit": commit}
    assert adaptool("inspect", tmp_path / "out")["module_count"] == 14


def test_pull_quiet(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Nothing is said of what went well."""
    del hub
    assert adaptool("pull", "--quiet", URI, tmp_path / "out", text=True) == ("", "")


def test_pull_dry_run(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """The commit and the files, without a byte of them."""
    said = adaptool("pull", "--dry-run", URI, tmp_path / "out")
    assert (said["dry_run"], said["bytes"]) == (True, sum(map(len, FILES.values())))
    assert (hub.asked("GET", "/resolve/"), list(tmp_path.iterdir())) == ([], [])
    out, _ = adaptool("pull", "--dry-run", URI, tmp_path / "out", text=True)
    assert "would pull me/adapter at " in out


def test_pull_overwrite(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """What a receipt accounts for is replaced only when asked."""
    adaptool("pull", URI, tmp_path / "out")
    adaptool("pull", URI, tmp_path / "out", code=5)
    hub.repos["me/adapter"].commit({**FILES, "README.md": b"# New\n"})
    adaptool("pull", URI, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "README.md").read_text() == "# New\n"


def test_pull_require_pinned(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Exit 2 for a branch, a tag, a shortened commit and nothing; a whole commit is taken."""
    commit = hub.repos["me/adapter"].head
    for revision in ("", "@main", f"@{commit[:12]}"):
        adaptool("pull", "--require-pinned", URI + revision, tmp_path / "no", code=2)
    assert hub.log == []
    said = adaptool("pull", "--require-pinned", f"{URI}@{commit}", tmp_path / "out")
    assert said["commit"] == commit


def test_pull_allow_pickle(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Exit 3 without the flag; with it the pickle comes, and reading it needs the flag again."""
    torch.save({"x": torch.zeros(1)}, tmp_path / "file.bin")
    pickled = {"adapter_model.bin": (tmp_path / "file.bin").read_bytes()}
    hub.repos["me/adapter"].commit({"adapter_config.json": FILES["adapter_config.json"], **pickled})
    said = adaptool("pull", URI, tmp_path / "no", code=3)
    assert said["error"]["code"] == "pickle-only"
    adaptool("pull", "--allow-pickle", URI, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.bin").read_bytes() == pickled["adapter_model.bin"]


def test_pull_max_bytes(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Exit 7 with both sizes where there is more, before a byte of it; nothing is written."""
    size = sum(map(len, FILES.values()))
    for more in ((), ("--dry-run",)):
        said = adaptool("pull", "--max-bytes", "60kB", URI, tmp_path / "no", *more, code=7)
        error = said["error"]
        assert (error["code"], error["field"]) == ("limit-exceeded", "--max-bytes")
        assert f"({size} bytes)" in error["message"]
        assert "60.0 kB" in error["message"]
    assert (hub.asked("GET", "/resolve/"), list(tmp_path.iterdir())) == ([], [])
    adaptool("pull", "--max-bytes", str(size), URI, tmp_path / "out")
    adaptool("pull", "--max-bytes", "many", URI, tmp_path / "no", code=2)


def test_pull_of_no_uri_is_exit_2(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """A name without its scheme could be a path."""
    adaptool("pull", "me/adapter", tmp_path / "out", code=2)
    assert hub.log == []


def test_push_json(adaptool: Adaptool, hub: StandIn) -> None:
    """Which repository, which commit, where to look at it, each file with its digest."""
    said = adaptool("push", "--json", ADAPTER, "hf://me/new")
    assert (said["schema"], said["repo"]) == (1, "me/new")
    assert said["commit"] == hub.repos["me/new"].head
    assert said["url"] == f"{hub.url}/me/new/commit/{said['commit']}"
    assert {row["name"] for row in said["files"]} == {*FILES, "README.md"}
    assert all(len(row["sha256"]) == 64 for row in said["files"])
    out, err = adaptool("push", ADAPTER, "hf://me/other", text=True)
    assert (out.startswith("pushed 3 files, "), err) == (True, "")


def test_push_quiet(adaptool: Adaptool, hub: StandIn) -> None:
    """Neither news nor the client's progress bars."""
    del hub
    assert adaptool("push", "--quiet", ADAPTER, "hf://me/new", text=True) == ("", "")


def test_push_dry_run(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Everything is checked, nothing is asked of the network."""
    said = adaptool("push", "--dry-run", ADAPTER, "hf://me/new")
    assert (said["commit"], len(said["files"]), hub.log) == (None, 3, [])
    bad = shutil.copytree(ADAPTER, tmp_path / "bad")
    (bad / "model.pkl").write_bytes(b"x")
    adaptool("push", "--dry-run", bad, "hf://me/new", code=3)


def test_push_private(adaptool: Adaptool, hub: StandIn) -> None:
    """A new repository is private with it and public without."""
    adaptool("push", "--private", ADAPTER, "hf://me/mine")
    adaptool("push", ADAPTER, "hf://me/ours")
    assert (hub.repos["me/mine"].private, hub.repos["me/ours"].private) == (True, False)


def test_push_create_pr_and_message(adaptool: Adaptool, hub: StandIn) -> None:
    """The request has the message as its title; the branch stays."""
    head = hub.repos["me/adapter"].head
    said = adaptool("push", "--create-pr", "--message", "A card", ADAPTER, URI)
    assert (hub.repos["me/adapter"].head, said["commit"] != head) == (head, True)
    assert hub.repos["me/adapter"].requests == ["A card"]
