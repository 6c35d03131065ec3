"""A base on the Hub that is merged while it comes: two shards here at most, each one checked.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one. What is on the disk is
looked at before and after every operation that changes it.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

import adaptool
from adaptool.errors import OutputError
from adaptool.store.disk import Disk
from command_line import environment
from hub_stand_in import Before, Corrupt, Drop, Refuse, StandIn, at_hand
from hub_stand_in import environment as pointing
from in_process import done, refused
from small_pairs import LLAMA, config_of, drawn, save, save_adapter

Result = TypeVar("Result")
SHARDS, WIDTH = 6, 2048
SHARD_BYTES = WIDTH * WIDTH * 2
BASE = "hf://me/base"
Pair = tuple[Path, Path]


def shard(place: int) -> str:
    """The name of a shard, counted from 1."""
    return f"model-{place:05d}-of-{SHARDS:05d}.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base of six shards of 8 MB, and an adapter of each one's linear layer."""
    root = tmp_path_factory.mktemp("pair")
    base = root / "base"
    base.mkdir()
    weight_map: dict[str, str] = {}
    factors = {}
    for layer in range(SHARDS):
        name = f"model.layers.{layer}"
        tensors = {
            f"{name}.input_layernorm.weight": 1 + drawn(layer, WIDTH),
            f"{name}.self_attn.q_proj.weight": drawn(50 + layer, WIDTH, WIDTH),
        }
        save(base / shard(layer + 1), tensors, "bfloat16")
        weight_map |= dict.fromkeys(tensors, shard(layer + 1))
        prefix = f"base_model.model.{name}.self_attn.q_proj"
        factors[f"{prefix}.lora_A.weight"] = drawn(100 + layer, 4, WIDTH)
        factors[f"{prefix}.lora_B.weight"] = drawn(200 + layer, WIDTH, 4)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {**LLAMA, "hidden_size": WIDTH, "num_hidden_layers": SHARDS, "dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "tokenizer.json").write_text('{"version": "1.0"}')
    config = config_of(r=4, lora_alpha=8, target_modules=["q_proj"])
    save_adapter(root / "adapter", factors, config)
    return base, root / "adapter"


@pytest.fixture(scope="module")
def merged(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a merge of the local copies gives."""
    out = tmp_path_factory.mktemp("local") / "out"
    adaptool.merge(*pair, out)
    return out


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passing: Path, pair: Pair
) -> Iterator[StandIn]:
    """A Hub that has both, an empty cache, and a place for what passes, empty again afterwards."""
    del passing
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with StandIn() as server:
        for name, folder in (("me/base", pair[0]), ("me/adapter", pair[1])):
            server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        at_hand(monkeypatch, server)
        yield server


class Watch(Disk):
    """The real file system; `most` bytes of weights files lay in `folder` at any moment."""

    __slots__ = ("_lock", "folder", "most")

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self._lock = folder, 0, threading.Lock()

    def perform(self, operation: str, call: Callable[..., Result], *arguments: object) -> Result:
        """Look, and make the call."""
        result = super().perform(operation, call, *arguments)
        with self._lock:
            held = sum(_room(path) for path in self.folder.rglob("*.safetensors"))
            self.most = max(self.most, held)
        return result


def _room(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def downloads(hub: StandIn, name: str = "") -> list[str]:
    """The base's weights files that were asked for whole, in order."""
    found = hub.asked("GET", rf"/me/base/resolve/.*{name}\.safetensors$|/me/base/resolve/.*{name}$")
    whole = [each for each in found if "range" not in each.headers]
    names = [each.path.rpartition("/")[2] for each in whole]
    return [each for each in names if each.endswith(".safetensors")]


def same_files(out: Path, merged: Path) -> None:
    """Byte for byte, but for what the receipt says of the inputs."""
    names = {path.name for path in merged.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"adaptool.json"}:
        assert (out / name).read_bytes() == (merged / name).read_bytes(), name
    ours, theirs = (json.loads((each / "adaptool.json").read_text()) for each in (out, merged))
    for receipt in (ours, theirs):
        del receipt["inputs"]
    assert ours == theirs


def test_two_shards_are_on_disk_at_most(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Beside the output, which is that of a local merge; every shard comes once, in order."""
    watch = Watch(tmp_path / "passing")
    adaptool.merge(BASE, pair[1], tmp_path / "out", disk=watch)
    assert SHARD_BYTES <= watch.most < 2.1 * SHARD_BYTES
    assert downloads(hub) == [shard(place) for place in range(1, SHARDS + 1)]
    same_files(tmp_path / "out", merged)


def test_the_next_shard_comes_while_one_is_merged(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """The first cannot be finished before the second is on its way: it is held until then."""
    under_way = threading.Event()
    waited: list[bool] = []

    def ask() -> None:
        if shard(2) in downloads(hub):
            under_way.set()

    def progress(count: int, total: int) -> None:
        del total
        if count and not waited:
            waited.append(under_way.wait(20))

    hub.when("GET", f"/resolve/.*{shard(2)}", Before(ask), times=9)
    adaptool.merge(BASE, pair[1], tmp_path / "out", progress=progress)
    assert waited == [True]
    same_files(tmp_path / "out", merged)


def test_receipt_has_the_hubs_digests(hub: StandIn, pair: Pair, tmp_path: Path) -> None:
    """Address, commit, and each shard's sha256 as the commit's tree has it."""
    import hashlib

    done("merge", f"{BASE}@main", "hf://me/adapter", tmp_path / "out")
    base, adapter = json.loads((tmp_path / "out" / "adaptool.json").read_text())["inputs"]
    assert (base["uri"], base["commit"]) == (f"{BASE}@main", hub.repos["me/base"].head)
    assert (adapter["uri"], adapter["commit"]) == ("hf://me/adapter", hub.repos["me/adapter"].head)
    files = {path.name: path.read_bytes() for path in sorted(pair[0].glob("*.safetensors"))}
    assert base["shards"] == [
        {"name": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        for name, raw in files.items()
    ]
    assert "adaptool-" not in (tmp_path / "out" / "adaptool.json").read_text()


def test_damaged_shard_is_exit_9(hub: StandIn, pair: Pair, tmp_path: Path) -> None:
    """The right size and a wrong last byte: nothing is published, the digests are told."""
    hub.when("GET", f"/resolve/.*{shard(3)}", Before(bool))  # its header comes as it is
    hub.when("GET", f"/resolve/.*{shard(3)}", Corrupt())
    error = refused(9, "merge", BASE, pair[1], tmp_path / "out")
    assert error["file"] == f"{BASE}: {shard(3)}"
    assert "sha256" in str(error["message"])
    assert not (tmp_path / "out").exists()


def test_part_that_was_another_is_exit_9(hub: StandIn, pair: Pair, tmp_path: Path) -> None:
    """What the plan was made by is compared with the shard when it is here."""
    hub.when("GET", f"/resolve/.*{shard(3)}", Corrupt())
    error = refused(9, "merge", BASE, pair[1], tmp_path / "out")
    assert error["file"] == f"{BASE}/{shard(3)}"
    assert "for the plan" in str(error["message"])
    assert not (tmp_path / "out").exists()


def test_shard_that_breaks_off_is_taken_up(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Only the rest is asked for again."""
    hub.when("GET", f"/resolve/.*{shard(2)}", Before(bool))
    hub.when("GET", f"/resolve/.*{shard(2)}", Drop(after=5_000_000))
    done("merge", BASE, pair[1], tmp_path / "out")
    ranges = [each.headers.get("range") for each in hub.asked("GET", f"/resolve/.*{shard(2)}")]
    assert ranges[:2] == ["bytes=0-65535", None]
    assert len(ranges) == 3
    assert int(str(ranges[2]).removeprefix("bytes=").removesuffix("-")) > 4_000_000
    same_files(tmp_path / "out", merged)


@pytest.mark.parametrize("place", [1, 4])
def test_shard_that_does_not_come_is_exit_6(
    hub: StandIn, pair: Pair, tmp_path: Path, place: int
) -> None:
    """The first, or one that comes while others are merged; the next run finds its way."""
    hub.when("GET", f"/resolve/.*{shard(place)}", Before(bool))
    hub.when("GET", f"/resolve/.*{shard(place)}", Refuse(403))
    error = refused(6, "merge", BASE, pair[1], tmp_path / "out")
    assert (error["code"], error["file"]) == ("authentication", f"{BASE}: {shard(place)}")
    assert not (tmp_path / "out").exists()
    done("merge", BASE, pair[1], tmp_path / "out")


def test_clients_cache_is_read_in_place(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Shards that it holds are neither downloaded nor copied; their headers are the Hub's."""
    for place in (1, 2, 3):
        hf_hub_download("me/base", shard(place), endpoint=hub.url, revision="main")
    hub.log.clear()
    watch = Watch(tmp_path / "passing")
    adaptool.merge(BASE, pair[1], tmp_path / "out", disk=watch)
    assert downloads(hub) == [shard(place) for place in (4, 5, 6)]
    assert watch.most < 2.1 * SHARD_BYTES
    same_files(tmp_path / "out", merged)


def test_damaged_cache_is_not_believed(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Its digest is checked; another byte anywhere, and the shard comes from the Hub."""
    cached = Path(hf_hub_download("me/base", shard(2), endpoint=hub.url, revision="main"))
    content = bytearray(cached.read_bytes())
    content[-5] ^= 1
    cached.resolve().write_bytes(content)
    hub.log.clear()
    done("merge", BASE, pair[1], tmp_path / "out")
    assert shard(2) in downloads(hub)
    same_files(tmp_path / "out", merged)


def test_header_in_a_damaged_cache_is_not_believed(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made by what the Hub says; in offline mode nothing is merged by it."""
    snapshot_download("me/base", endpoint=hub.url)
    cached = Path(hf_hub_download("me/base", shard(2), endpoint=hub.url))
    content = cached.read_bytes().replace(b'"BF16"', b'"F16" ', 1)
    cached.resolve().write_bytes(content)
    done("merge", BASE, pair[1], tmp_path / "out")
    same_files(tmp_path / "out", merged)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(6, "merge", BASE, pair[1], tmp_path / "again")["code"] == "offline"
    assert not (tmp_path / "again").exists()


def test_offline_a_complete_cache_is_enough(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one request, and the same bytes; without the weights it is exit 6."""
    snapshot_download("me/base", endpoint=hub.url)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done("inspect", BASE)
    done("merge", BASE, pair[1], tmp_path / "out")
    same_files(tmp_path / "out", merged)
    assert hub.log == []
    assert refused(6, "inspect", "hf://me/adapter")["code"] == "offline"


def test_room_for_two_shards_is_looked_for_first(hub: StandIn, pair: Pair, tmp_path: Path) -> None:
    """Exit 5 before a weight is downloaded; the hint names TMPDIR."""

    class Full(Disk):
        __slots__ = ()

        def free_space(self, path: Path) -> int:
            """Not enough where things pass."""
            return 1 << 40 if path == tmp_path else 10_000_000

    with pytest.raises(OutputError, match="two weights files") as caught:
        adaptool.merge(BASE, pair[1], tmp_path / "out", disk=Full())
    assert "TMPDIR" in str(caught.value.hint)
    assert downloads(hub) == []


def test_reversible_merge_takes_the_base_whole(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Its tensors are read once more when the sidecar is made."""
    done("merge", BASE, pair[1], tmp_path / "out", "--reversible")
    for path in merged.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    done("unmerge", tmp_path / "out", pair[1], tmp_path / "back")
    for path in pair[0].glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()
    assert len(downloads(hub)) == SHARDS


def test_tensor_that_the_plan_reads_is_compared_later(
    hub: StandIn, pair: Pair, tmp_path: Path
) -> None:
    """A saved copy of a base tensor, 8 MB, is told by its bytes before anything is downloaded."""
    name = "model.layers.0.self_attn.q_proj"
    tensors = {f"base_model.model.{name}.weight": drawn(50, WIDTH, WIDTH)}
    other = "base_model.model.model.layers.1.self_attn.q_proj"
    tensors[f"{other}.lora_A.weight"] = drawn(1, 4, WIDTH)
    tensors[f"{other}.lora_B.weight"] = drawn(2, WIDTH, 4)
    config = config_of(r=4, target_modules=["q_proj"], modules_to_save=["0.self_attn.q_proj"])
    save_adapter(tmp_path / "saved", tensors, config)
    for base, out in ((BASE, "there"), (pair[0], "here")):
        done("merge", base, pair[1], tmp_path / out, "--add", f"{tmp_path / 'saved'}=0.5")
    for path in (tmp_path / "here").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    assert any("range" in each.headers for each in hub.asked("GET", shard(1)))


def test_larger_shards_are_cut_out_of_several(hub: StandIn, pair: Pair, tmp_path: Path) -> None:
    """--max-shard-size with limits that are no multiple of the base's shards."""
    for base, out in ((BASE, "there"), (pair[0], "here")):
        done("merge", base, pair[1], tmp_path / out, "--max-shard-size", "13MB")
    for path in (tmp_path / "here").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    assert len(downloads(hub)) == SHARDS


def test_verify_streams_the_base_too(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Each shard comes once; a changed element is found, a damaged shard is no verdict."""
    assert adaptool.verify(BASE, pair[1], merged, exact=True).ok
    assert downloads(hub) == [shard(place) for place in range(1, SHARDS + 1)]
    other = tmp_path / "other"
    shutil.copytree(merged, other)
    content = bytearray((other / shard(4)).read_bytes())
    content[-1] ^= 1
    (other / shard(4)).write_bytes(content)
    found = adaptool.verify(BASE, pair[1], other, exact=True)
    (different,) = found.different
    assert (found.ok, different.tensor) == (False, "model.layers.3.self_attn.q_proj.weight")
    hub.when("GET", f"/resolve/.*{shard(3)}", Before(bool))
    hub.when("GET", f"/resolve/.*{shard(3)}", Corrupt())
    refused(9, "verify", BASE, pair[1], merged)


def test_file_that_is_not_in_lfs_is_checked_by_gits_digest(
    hub: StandIn, pair: Pair, tmp_path: Path
) -> None:
    """One file, `.st`, which the stand-in keeps in git: its receipt has a fingerprint."""
    content = (pair[0] / shard(1)).read_bytes()
    (tmp_path / "whole.st").write_bytes(content)
    hub.add("me/one", {"whole.st": content})
    for base, out in (("hf://me/one/whole.st", "there"), (tmp_path / "whole.st", "here")):
        done("merge", base, pair[1], tmp_path / out, "--skip-unmatched")
    receipts = []
    for out in ("there", "here"):
        receipts.append(json.loads((tmp_path / out / "adaptool.json").read_text()))
        (weights,) = (tmp_path / out).glob("*.s*t*")
        assert weights.read_bytes() == next((tmp_path / "here").glob("*.s*t*")).read_bytes()
    there, here = (receipt["inputs"][0]["shards"] for receipt in receipts)
    assert there == here


def test_base_on_the_hub_becomes_a_model_on_the_hub(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """Both streamed: two shards that came and two that leave, and the bytes of a local merge."""
    watch = Watch(tmp_path / "passing")
    adaptool.merge(BASE, pair[1], "hf://me/out", disk=watch)
    files = hub.repos["me/out"].files
    for path in merged.glob("*.safetensors*"):
        assert files[path.name] == path.read_bytes()
    assert watch.most < 4.2 * SHARD_BYTES


def test_interrupted_run_does_not_wait_for_a_stalled_download(
    hub: StandIn, pair: Pair, tmp_path: Path
) -> None:
    """Ctrl-C while the server says nothing: exit 130, OUT absent, nothing left behind."""
    running: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()

    def stall() -> None:
        if shard(2) in downloads(hub) and running[0].poll() is None:
            running[0].send_signal(signal.SIGINT)
            ended.wait(120)

    hub.when("GET", f"/resolve/.*{shard(2)}", Before(stall), times=9)
    command = [sys.executable, "-m", "adaptool", "merge", BASE, str(pair[1]), str(tmp_path / "out")]
    passing = {"TMPDIR": str(tmp_path / "passing"), "HF_HUB_CACHE": str(tmp_path / "cache")}
    env = environment({**pointing(hub), **passing})
    running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE))
    try:
        _, said = running[0].communicate(timeout=60)
    finally:
        ended.set()
        running[0].kill()
    assert (running[0].returncode, b"stopped by SIGINT" in said) == (130, True), said
    assert not (tmp_path / "out").exists()


def test_receipt_that_the_base_brings_is_not_its_address(
    hub: StandIn, pair: Pair, merged: Path, tmp_path: Path
) -> None:
    """A base that was merged itself: the receipt says where it came from this time."""
    made = {"command": "merge", "outputs": [], "note": "x" * 10_000}
    files = hub.repos["me/base"].files
    hub.repos["me/base"].commit({**files, "adaptool.json": json.dumps(made).encode()})
    done("merge", BASE, pair[1], tmp_path / "out")
    (base, _) = json.loads((tmp_path / "out" / "adaptool.json").read_text())["inputs"]
    assert base["commit"] == hub.repos["me/base"].head
    same_files(tmp_path / "out", merged)
