"""Offline mode: the client's cache is used where it is complete, and nobody is asked.

The Hub that fills the cache is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from command_line import ADAPTER, BASE
from hub_stand_in import StandIn, at_hand
from in_process import done, refused

ADAPTER_FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
BASE_FILES = {path.name: path.read_bytes() for path in BASE.iterdir()}
WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_URI, BASE_URI = "hf://me/adapter", "hf://me/base"


@dataclass
class Cache:
    """A cache that is filled from a Hub, which then is gone."""

    hub: StandIn
    folder: Path
    patch: pytest.MonkeyPatch

    def snapshot(self, repo: str, revision: str = "main") -> str:
        """Everything; the client keeps the list of the files."""
        return snapshot_download(repo, revision=revision, endpoint=self.hub.url)

    def file(self, repo: str, name: str) -> str:
        """One file, as transformers downloads them."""
        return hf_hub_download(repo, name, endpoint=self.hub.url)

    def cut_off(self) -> None:
        """From now on nobody is asked."""
        self.patch.setattr(constants, "HF_HUB_OFFLINE", True)
        self.hub.log.clear()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cache]:
    """A Hub with an adapter and a base, and an empty cache; afterwards nothing was asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with StandIn() as hub:
        hub.add("me/adapter", ADAPTER_FILES)
        hub.add("me/base", BASE_FILES)
        at_hand(monkeypatch, hub)
        yield Cache(hub, tmp_path / "cache", monkeypatch)
        assert hub.log == []


def _pulled(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "adaptool.json"}


@pytest.mark.parametrize("revision", ["", "@main", "@{commit}"])
def test_snapshot_in_the_cache_is_pulled(cache: Cache, tmp_path: Path, revision: str) -> None:
    """A branch is what it was when the client last saw it; the receipt names the commit."""
    commit = cache.hub.repos["me/adapter"].head
    cache.snapshot("me/adapter")
    cache.cut_off()
    uri = ADAPTER_URI + revision.format(commit=commit)
    said = done("pull", uri, tmp_path / "out", "--json").json
    assert said["commit"] == commit
    assert _pulled(tmp_path / "out") == ADAPTER_FILES
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert receipt["pulled"] == {"uri": uri, "repo": "me/adapter", "commit": commit}


def test_files_downloaded_one_by_one_are_pulled(cache: Cache, tmp_path: Path) -> None:
    """The client then keeps no list: what an adapter needs is known without it."""
    for name in ADAPTER_FILES:
        cache.file("me/adapter", name)
    cache.cut_off()
    done("pull", ADAPTER_URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == ADAPTER_FILES


def test_merge_of_cached_inputs_is_the_merge_of_copies(cache: Cache, tmp_path: Path) -> None:
    """The same bytes, without a request."""
    done("merge", BASE, ADAPTER, tmp_path / "here")
    cache.snapshot("me/adapter")
    cache.snapshot("me/base")
    cache.cut_off()
    done("merge", BASE_URI, ADAPTER_URI, tmp_path / "there")
    assert done("inspect", ADAPTER_URI, "--json").json["module_count"] == 14
    for file in (tmp_path / "here").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()


def test_cache_that_was_copied_without_its_links_is_used(cache: Cache, tmp_path: Path) -> None:
    """The names that are digests are lost then; the files are what they are."""
    cache.snapshot("me/adapter")
    shutil.copytree(cache.folder, tmp_path / "copy", symlinks=False)
    shutil.rmtree(tmp_path / "copy" / "models--me--adapter" / "blobs")
    cache.patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "copy"))
    cache.cut_off()
    done("pull", ADAPTER_URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == ADAPTER_FILES


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("lacking", [WEIGHTS, "adapter_config.json"])
def test_adapter_that_lacks_a_file_is_exit_6(
    cache: Cache, tmp_path: Path, one_by_one: bool, lacking: str
) -> None:
    """At once, and it says what is missing; nothing is written."""
    if one_by_one:
        for name in set(ADAPTER_FILES) - {lacking}:
            cache.file("me/adapter", name)
    else:
        Path(cache.snapshot("me/adapter"), lacking).unlink()
    cache.cut_off()
    error = refused(6, "pull", ADAPTER_URI, tmp_path / "out")
    assert (error["code"], error["retryable"]) == ("offline", False)
    assert lacking in str(error["message"]) or "no weights" in str(error["message"])
    assert "HF_HUB_OFFLINE" in str(error["hint"])
    assert refused(6, "inspect", ADAPTER_URI)["code"] == "offline"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("one_by_one", [False, True])
def test_base_that_lacks_a_shard_is_exit_6(cache: Cache, tmp_path: Path, one_by_one: bool) -> None:
    """The index says which shards there are."""
    done("merge", BASE, ADAPTER, tmp_path / "sharded", "--max-shard-size", "100KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "sharded").iterdir()}
    cache.hub.add("me/sharded", files)
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    if one_by_one:
        for name in ("config.json", INDEX, *shards[1:]):
            cache.file("me/sharded", name)
    else:
        Path(cache.snapshot("me/sharded"), shards[0]).unlink()
    cache.cut_off()
    error = refused(6, "merge", "hf://me/sharded", ADAPTER, tmp_path / "out")
    assert (error["code"], shards[0] in str(error["message"])) == ("offline", True)
    assert not (tmp_path / "out").exists()


def test_companion_counts_where_the_client_kept_the_list(cache: Cache, tmp_path: Path) -> None:
    """A licence or a tokenizer may be or not be: only the list of the commit's files tells."""
    cache.hub.add("me/licensed", {**ADAPTER_FILES, "LICENSE": b"Do as you like."})
    Path(cache.snapshot("me/licensed"), "LICENSE").unlink()
    cache.cut_off()
    error = refused(6, "pull", "hf://me/licensed", tmp_path / "out")
    count = len(ADAPTER_FILES)
    assert f"{count} of the {count + 1} files" in str(error["message"])
    assert "it lacks LICENSE" in str(error["message"])


def test_what_was_never_downloaded_is_exit_6(cache: Cache, tmp_path: Path) -> None:
    """No repository, no such revision, no such commit."""
    cache.snapshot("me/adapter")
    cache.cut_off()
    for uri in ("hf://me/none", f"{ADAPTER_URI}@other", f"{ADAPTER_URI}@{'0' * 40}"):
        error = refused(6, "pull", uri, tmp_path / "out")
        assert (error["code"], error["file"]) == ("offline", uri)


def test_damaged_file_of_the_cache_is_not_used(cache: Cache, tmp_path: Path) -> None:
    """Its digest is checked as ever, and there is nobody to ask for a better one: exit 6."""
    found = Path(cache.snapshot("me/adapter"), WEIGHTS)
    found.resolve().write_bytes(bytes(len(ADAPTER_FILES[WEIGHTS])))
    cache.cut_off()
    assert refused(6, "pull", ADAPTER_URI, tmp_path / "out")["code"] == "offline"
    assert not (tmp_path / "out").exists()


def test_pull_that_broke_off_is_completed_from_the_cache(cache: Cache, tmp_path: Path) -> None:
    """What an earlier run left does not stand in the way."""
    from hub_stand_in import Drop, Refuse

    cache.hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=50_000))
    cache.hub.when("GET", f"/resolve/.*{WEIGHTS}", Refuse(403))
    refused(6, "pull", ADAPTER_URI, tmp_path / "out")
    cache.snapshot("me/adapter")
    cache.cut_off()
    done("pull", ADAPTER_URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == ADAPTER_FILES


def test_push_is_exit_6(cache: Cache) -> None:
    """The cache is no place to push to, even where it knows the repository."""
    cache.snapshot("me/adapter")
    cache.cut_off()
    for uri in (ADAPTER_URI, "hf://me/new"):
        error = refused(6, "push", ADAPTER, uri)
        assert (error["code"], error["retryable"]) == ("offline", False)
