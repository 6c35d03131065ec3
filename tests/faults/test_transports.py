"""Large files by Xet, by LFS whole and in parts: the same bytes come back whichever way they went.

The Hub is the stand-in of tests/hub_stand_in.py, its Xet the local store of tests/hub_xet.py; both
clients, huggingface_hub and hf_xet, are the real ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import ADAPTER, BASE
from hub_requests import sha256_of
from hub_stand_in import Before, Refuse, StandIn
from hub_xet import XetStore, needs_local_store
from in_process import ask, done, refused

WEIGHTS = "adapter_model.safetensors"
URI = "hf://me/adapter"


@pytest.fixture
def store(hub: StandIn, tmp_path: Path) -> XetStore:
    """The same Hub with Xet."""
    hub.xet = needs_local_store(tmp_path / "store")
    return hub.xet


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model of several shards, with its receipt."""
    out = tmp_path_factory.mktemp("merged") / "model"
    done("merge", BASE, ADAPTER, out, "--max-shard-size", "100KB")
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


def _bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _there_and_back(hub: StandIn, source: Path, out: Path) -> None:
    """Pushes, pulls, and compares every file and the commit's digests."""
    done("push", source, "hf://me/there")
    done("pull", "hf://me/there", out)
    sent, back = _bytes_in(source), _bytes_in(out)
    assert {name: back[name] for name in sent if name != "adaptool.json"} == {
        name: sent[name] for name in sent if name != "adaptool.json"
    }
    entries = done("pull", "hf://me/there", out, "--dry-run", "--overwrite", "--json").json["files"]
    digests = {row["name"]: row["sha256"] for row in entries if row["sha256"]}
    weights = [name for name in sent if name.endswith(".safetensors")]
    assert digests == {name: sha256_of(sent[name]) for name in weights}
    assert set(hub.repos["me/there"].files) >= set(sent)


def test_adapter_goes_over_xet_and_comes_back(
    hub: StandIn, store: XetStore, tmp_path: Path
) -> None:
    """The same bytes; the tree names Xet's hash and the sha256, and LFS was not asked."""
    _there_and_back(hub, ADAPTER, tmp_path / "out")
    assert store.hash_of(sha256_of((ADAPTER / WEIGHTS).read_bytes()))
    assert hub.asked("GET", "/xet-write-token/")
    assert [each.path for each in hub.log if "/lfs/" in each.path] == []


def test_merged_model_of_several_shards_goes_over_xet_and_comes_back(
    hub: StandIn, store: XetStore, merged: Path, tmp_path: Path
) -> None:
    """And what is pulled verifies against base and adapter."""
    _there_and_back(hub, merged, tmp_path / "out")
    assert [each.path for each in hub.log if "/lfs/" in each.path] == []
    assert all(store.hash_of(sha256_of(path.read_bytes())) for path in merged.glob("*.safetensors"))
    done("verify", BASE, ADAPTER, tmp_path / "out")


def test_merge_to_the_hub_goes_over_xet(hub: StandIn, store: XetStore, merged: Path) -> None:
    """Shard by shard, each given up when it is there: the same bytes as merged here."""
    done("merge", BASE, ADAPTER, "hf://me/there", "--max-shard-size", "100KB")
    files = hub.repos["me/there"].files
    for path in merged.glob("*.safetensors*"):
        assert files[path.name] == path.read_bytes()
        assert path.suffix == ".json" or store.hash_of(sha256_of(path.read_bytes()))
    assert [each.path for each in hub.log if "/lfs/" in each.path] == []


def test_pushing_over_xet_again_sends_nothing(
    hub: StandIn, store: XetStore, tmp_path: Path
) -> None:
    """Neither to the same repository nor, as the chunks are there, to another one."""
    first = done("push", ADAPTER, URI, "--json").json["commit"]
    size = store.chunk_bytes()
    assert size > 0
    assert done("push", ADAPTER, URI, "--json").json["commit"] == first
    done("push", ADAPTER, "hf://me/other")
    assert store.chunk_bytes() == size
    done("pull", "hf://me/other", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (ADAPTER / WEIGHTS).read_bytes()
    assert hub.asked("PUT", "") == []


def test_client_itself_pulls_over_xet_what_was_pushed(
    hub: StandIn, store: XetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf_hub_download takes the way over hf_xet, not HTTP, and gets the same bytes."""
    from huggingface_hub import constants, hf_hub_download

    done("push", ADAPTER, URI)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.log.clear()
    found = hf_hub_download("me/adapter", WEIGHTS, endpoint=hub.url)
    assert Path(found).read_bytes() == (ADAPTER / WEIGHTS).read_bytes()
    assert hub.asked("GET", "/xet-read-token/")
    assert hub.asked("GET", f"/resolve/.*{WEIGHTS}") == []
    assert store.chunk_bytes() > 0


def test_store_that_breaks_midway_is_exit_6_and_nothing_is_committed(
    hub: StandIn, store: XetStore, merged: Path
) -> None:
    """The first shard is in the store, the second cannot be: the branch stays where it was."""
    repo = hub.add("me/model", {"README.md": b"# Mine\n"})
    head, tokens = repo.head, iter(range(9))

    def break_it() -> None:
        if next(tokens) == 2:  # the first asks whether there is Xet at all
            shutil.rmtree(store.root / "xet")
            (store.root / "xet").write_text("no directory")

    hub.when("GET", "/xet-write-token/", Before(break_it), times=9)
    error = refused(6, "push", merged, "hf://me/model")
    assert (error["code"], error["retryable"]) == ("network", True)
    assert (repo.head, hub.asked("POST", "/commit/")) == (head, [])
    assert next(tokens) > 2


def test_server_without_xet_is_served_by_lfs(hub: StandIn, tmp_path: Path) -> None:
    """The client alone would fail: it asks nobody which way to go."""
    from huggingface_hub import HfApi

    with pytest.raises(OSError, match="Network error"):
        HfApi(endpoint=hub.url).upload_file(
            path_or_fileobj=ADAPTER / WEIGHTS, path_in_repo=WEIGHTS, repo_id=_made(hub)
        )
    hub.log.clear()
    _there_and_back(hub, ADAPTER, tmp_path / "out")
    assert len(hub.asked("PUT", "/lfs/")) == 1
    assert len(hub.asked("POST", "/lfs/.*/verify")) == 1


def test_text_that_the_server_keeps_in_lfs_goes_there(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository may say so of any file; the card is made here and lies in no file."""
    monkeypatch.setattr("hub_requests.LFS_SUFFIXES", (".safetensors", ".md"))
    done("push", ADAPTER, URI)
    assert len(hub.asked("PUT", "/lfs/")) == 2
    assert b"library_name: peft" in hub.repos["me/adapter"].files["README.md"]


@pytest.mark.parametrize("status", [429, 503])
def test_refusal_for_now_is_not_taken_for_a_server_without_xet(
    hub: StandIn, store: XetStore, status: int
) -> None:
    """It is asked again, and the file goes over Xet."""
    hub.when("GET", "/xet-write-token/", Refuse(status, {"Retry-After": "0"}))
    done("push", ADAPTER, URI)
    assert store.hash_of(sha256_of((ADAPTER / WEIGHTS).read_bytes()))
    assert [each.path for each in hub.log if "/lfs/" in each.path] == []


def _made(hub: StandIn) -> str:
    hub.add("me/made", {})
    return "me/made"


def test_xet_switched_off_by_its_variable_is_lfs(
    hub: StandIn, store: XetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_DISABLE_XET is the client's own switch."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    before = store.chunk_bytes()
    _there_and_back(hub, ADAPTER, tmp_path / "out")
    assert len(hub.asked("PUT", "/lfs/")) == 1
    assert store.chunk_bytes() == before


@pytest.mark.parametrize("part_size", [20_000, 1 << 30])
def test_large_file_goes_in_the_parts_that_the_server_asks_for(
    hub: StandIn, tmp_path: Path, part_size: int
) -> None:
    """Each part to its own address, then one request that names them all."""
    hub.part_size = part_size
    _there_and_back(hub, ADAPTER, tmp_path / "out")
    size = (ADAPTER / WEIGHTS).stat().st_size
    assert len(hub.asked("PUT", "/parts/")) == -(-size // part_size)
    assert len(hub.asked("POST", "/complete")) == 1
    assert hub.asked("PUT", "/lfs/[0-9a-f]+$") == []


@pytest.mark.parametrize(("method", "where"), [("PUT", "/parts/2"), ("POST", "/complete")])
def test_part_that_is_refused_is_exit_6_and_the_next_push_completes(
    hub: StandIn, method: str, where: str
) -> None:
    """Nothing was committed; what failed once for now is sent again by itself."""
    hub.part_size = 20_000
    repo = hub.add("me/adapter", {})
    hub.when(method, where, Refuse(403))
    assert refused(6, "push", ADAPTER, URI)["code"] == "authentication"
    assert repo.files == {}
    done("push", ADAPTER, URI)
    assert repo.files[WEIGHTS] == (ADAPTER / WEIGHTS).read_bytes()


def test_token_that_may_only_read_is_exit_6_over_xet(
    hub: StandIn, store: XetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before anything is sent, and the token is not shown."""
    from hub_stand_in import READER

    hub.add("me/adapter", {})
    monkeypatch.setenv("HF_TOKEN", READER)
    before = store.chunk_bytes()
    answer = ask("push", ADAPTER, URI, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (6, "authentication")
    assert READER not in answer.out + answer.err
    assert (store.chunk_bytes(), json.dumps(answer.json).count("xet")) == (before, 0)
