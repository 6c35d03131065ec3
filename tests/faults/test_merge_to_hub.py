"""`merge BASE ADAPTER hf://owner/name`: shards leave as they are made, one commit or none.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import adaptool
from adaptool.store.disk import Disk, OpenFile
from command_line import ADAPTER, BASE, environment
from hub_stand_in import READER, TOKEN, Before, Drop, Fault, Lose, Refuse, StandIn, at_hand
from hub_stand_in import environment as pointing
from hub_xet import needs_local_store
from in_process import ask, done, refused
from small_pairs import Pair
from wide_base import SHARD_BYTES, SHARDS, write_wide

OUT = "hf://me/out"
OLD = {"README.md": b"---\nlicense: mit\n---\n# Mine\n", "config.json": b"{}"}
MADE = {"README.md", ".gitattributes"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, passing: Path) -> Iterator[StandIn]:
    """A Hub, a token that may write there; no temporary file is left behind."""
    del passing
    with StandIn() as server:
        at_hand(monkeypatch, server, TOKEN)
        yield server


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base of six shards."""
    return write_wide(tmp_path_factory.mktemp("wide"))


class _Watched(Disk):
    """Counts the shards that lie on the disk."""

    __slots__ = ("most", "now", "third")

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.most = 0
        self.third = threading.Event()

    def open_or_create(self, path: Path) -> OpenFile:
        if path.suffix == ".safetensors":
            self.now.add(path.name)
            self.most = max(self.most, len(self.now))
            if len(self.now) > 2:
                self.third.set()
        return super().open_or_create(path)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.now.discard(path.name)


def _local(folder: Path, base: Path, adapter: Path) -> dict[str, bytes]:
    done("merge", base, adapter, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in MADE}


def test_two_shards_at_most_are_on_the_disk(hub: StandIn, wide: Pair, tmp_path: Path) -> None:
    """However slow the upload is: here the first one waits for a third shard, in vain."""
    disk = _Watched()
    hub.when("PUT", "/lfs/", Before(lambda: disk.third.wait(0.5)))
    result = adaptool.merge(wide.base, wide.adapter, OUT, disk=disk)
    assert (disk.most, disk.now) == (2, set())
    assert len(hub.asked("PUT", "/lfs/")) == SHARDS
    repo = hub.repos["me/out"]
    assert result.published is not None
    assert (result.published.commit, len(repo.commits)) == (repo.head, 2)
    assert _without_card(repo.files) == _local(tmp_path / "out", wide.base, wide.adapter)


def _room_taken(folder: Path) -> int:
    """Bytes on the disk; what is hollow takes none, and files may go while they are counted."""
    taken = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            taken += path.lstat().st_blocks * 512
    return taken


def test_base_and_output_on_the_hub_pass_through(
    hub: StandIn, wide: Pair, passing: Path, tmp_path: Path
) -> None:
    """Two shards that came and two that go, whenever the server is asked for anything."""
    hub.add("me/wide", {path.name: path.read_bytes() for path in wide.base.iterdir()})
    taken: list[int] = []
    for method in ("GET", "POST", "PUT"):
        hub.when(method, "", Before(lambda: taken.append(_room_taken(passing))), times=999)
    done("merge", "hf://me/wide", wide.adapter, OUT)
    assert 2 * SHARD_BYTES < max(taken) < 4 * SHARD_BYTES + (1 << 20)
    wanted = _local(tmp_path / "out", wide.base, wide.adapter)
    files = _without_card(hub.repos["me/out"].files)
    assert files.keys() == wanted.keys()
    assert all(files[name] == wanted[name] for name in wanted if name != "adaptool.json")


def test_shards_leave_over_xet_as_well(hub: StandIn, wide: Pair, tmp_path: Path) -> None:
    """Two on the disk at most, nothing by LFS, the bytes of the local merge."""
    hub.xet = needs_local_store(tmp_path / "store")
    disk = _Watched()
    adaptool.merge(wide.base, wide.adapter, OUT, disk=disk)
    assert (disk.most, disk.now) == (2, set())
    assert [each.path for each in hub.log if "/lfs/" in each.path] == []
    wanted = _local(tmp_path / "out", wide.base, wide.adapter)
    assert _without_card(hub.repos["me/out"].files) == wanted


def test_commit_holds_the_files_of_the_local_merge(hub: StandIn, tmp_path: Path) -> None:
    """Byte for byte, the receipt too, in one commit; and a card."""
    said = done("merge", BASE, ADAPTER, OUT, "--checksum", "--json").json
    repo = hub.repos["me/out"]
    assert (said["out"], said["commit"]) == (OUT, repo.head)
    assert said["url"] == f"{hub.url}/me/out/commit/{repo.head}"
    done("merge", BASE, ADAPTER, tmp_path / "out", "--checksum")
    here = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert _without_card(repo.files) == here
    assert len(hub.asked("POST", "/commit/")) == 1
    done("pull", OUT, tmp_path / "again")
    done("verify", BASE, ADAPTER, tmp_path / "again", "--exact")


def test_card_is_the_one_that_push_would_make(hub: StandIn, tmp_path: Path) -> None:
    """Whether the shards were still there or not."""
    done("merge", BASE, ADAPTER, "hf://me/one")
    done("merge", BASE, ADAPTER, tmp_path / "one")
    done("push", tmp_path / "one", "hf://me/two")
    one, two = (hub.repos[f"me/{name}"].files["README.md"].decode() for name in ("one", "two"))
    assert one == two.replace("# two", "# one")


def test_folder_of_a_repository_takes_a_model(hub: StandIn) -> None:
    """Beside what is there; the card of the repository is left alone."""
    repo = hub.add("me/many", {"README.md": b"# All\n"})
    done("merge", BASE, ADAPTER, "hf://me/many/merged")
    assert repo.files["README.md"] == b"# All\n"
    assert "merged/model-00001-of-00002.safetensors" in repo.files
    assert "merged/README.md" not in repo.files


def test_existing_card_keeps_its_text(hub: StandIn) -> None:
    """What it says stays; what it lacks is added."""
    repo = hub.add("me/out", OLD)
    done("merge", BASE, ADAPTER, OUT)
    card = repo.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert card.endswith("---\n# Mine\n")
    assert "library_name: transformers\n" in card


def test_what_the_server_has_is_not_sent_again(hub: StandIn) -> None:
    """A run that broke off before its commit has not uploaded in vain."""
    hub.when("POST", "/commit/", Refuse(403))
    refused(6, "merge", BASE, ADAPTER, OUT)
    assert set(hub.repos["me/out"].files) == {".gitattributes"}
    sent = len(hub.asked("PUT", "/lfs/"))
    done("merge", BASE, ADAPTER, OUT)
    assert len(hub.asked("PUT", "/lfs/")) == sent


def test_dry_run_asks_nothing_of_the_network(hub: StandIn) -> None:
    """The plan, as for a directory."""
    said = done("merge", BASE, ADAPTER, OUT, "--dry-run", "--json").json
    assert (said["out"], said["tensors"]["touched"], hub.log) == (OUT, 14, [])
    assert "commit" not in said


def _requests_of_a_merge(hub: StandIn) -> int:
    hub.log.clear()
    done("merge", BASE, ADAPTER, OUT)
    count = len(hub.log)
    hub.log.clear()
    hub.stored.clear()
    hub.add("me/out", OLD)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Refuse(403), Refuse(503), Drop(), Lose()], ids=repr)
def test_fault_at_any_request_leaves_the_old_or_the_new(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault
) -> None:
    """Exit 6 and the old commit, or exit 0 and all of the new one; never anything between."""
    wanted = _local(tmp_path / "out", BASE, ADAPTER)
    hub.add("me/out", OLD)
    count = _requests_of_a_merge(hub)
    assert count > 12
    server = hub.fault
    for number in range(1, count + 1):
        hub.log.clear()
        hub.stored.clear()
        repo = hub.add("me/out", OLD)
        monkeypatch.setattr(hub, "fault", _at(hub, server, number, fault))
        answer = ask("merge", BASE, ADAPTER, OUT)
        assert answer.code in {0, 6}, (number, answer.err)
        assert TOKEN not in answer.err
        if answer.code:
            assert repo.files == OLD or _without_card(repo.files) == wanted
        else:
            assert _without_card(repo.files) == wanted
        assert len(repo.commits) <= 2


def _at(
    hub: StandIn, server: Callable[[object], Fault | None], number: int, fault: Fault
) -> Callable[[object], Fault | None]:
    """The n-th request goes wrong."""

    def decide(request: object) -> Fault | None:
        usual = server(request)
        return fault if len(hub.log) == number else usual

    return decide


def test_branch_that_moved_is_exit_6_and_kept(hub: StandIn) -> None:
    """What was pushed while the merge ran is not overwritten."""
    repo = hub.add("me/out", OLD)
    theirs = {**OLD, "note.txt": b"theirs"}
    hub.when("PUT", "/lfs/", Before(lambda: repo.commit(theirs)))
    error = refused(6, "merge", BASE, ADAPTER, OUT)
    assert (error["code"], repo.files) == ("remote-moved", theirs)


@pytest.mark.parametrize("fault", [Lose(), Drop(after=5)])
def test_lost_answer_to_the_commit_is_recognised(hub: StandIn, fault: Fault) -> None:
    """The branch is read again: the commit is there, so the merge is done."""
    repo = hub.add("me/out", OLD)
    hub.when("POST", "/commit/", fault)
    said = done("merge", BASE, ADAPTER, OUT, "--json").json
    assert (said["commit"], len(repo.commits)) == (repo.head, 2)


@pytest.mark.slow
def test_upload_that_the_client_gives_up_is_begun_again(hub: StandIn) -> None:
    """It asks six times in half a minute; behind a shard there may be the work of hours."""
    hub.when("POST", "/objects/batch", Refuse(503), times=6)
    done("merge", BASE, ADAPTER, OUT)
    assert len(hub.repos["me/out"].commits) == 2


def _nothing_uploaded(hub: StandIn) -> bool:
    return not (hub.asked("PUT", "") or hub.asked("POST", "/objects/batch"))


def test_token_that_may_not_write_is_refused_before_the_work(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6 after a few questions, not after hours."""
    hub.add("me/out", OLD)
    monkeypatch.setenv("HF_TOKEN", READER)
    error = refused(6, "merge", BASE, ADAPTER, OUT)
    assert (error["code"], _nothing_uploaded(hub)) == ("authentication", True)


def test_weights_of_another_model_are_refused_before_the_work(hub: StandIn) -> None:
    """Exit 4: a loader would take them for a part of this one."""
    hub.add("me/out", {"model-00003-of-00003.safetensors": b"old"})
    error = refused(4, "merge", BASE, ADAPTER, OUT)
    assert (error["code"], _nothing_uploaded(hub)) == ("stale-weights", True)


def test_card_that_the_hub_would_refuse_is_seen_before_the_work(hub: StandIn) -> None:
    """Exit 3: its front matter names a path of some machine."""
    hub.add("me/out", {"README.md": b"---\nbase_model: /home/me/base\n---\n"})
    error = refused(3, "merge", BASE, ADAPTER, OUT)
    assert (error["field"], _nothing_uploaded(hub)) == ("base_model", True)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("chat_template.jinja", f"{{# {TOKEN} #}}", "secret-found"),
        ("2_Dense/config.json", f'{{"token": "{TOKEN}"}}', "secret-found"),
        ("scaler.joblib", "x", "pickle-file"),
    ],
)
def test_file_that_must_not_leave_is_exit_3_before_the_network(
    hub: StandIn, tmp_path: Path, name: str, content: str, code: str
) -> None:
    """A merge copies it, so it would be sent; the token is not repeated."""
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_text(content)
    answer = ask("merge", base, ADAPTER, OUT, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (3, code)
    assert (hub.log, TOKEN in answer.out + answer.err) == ([], False)


def test_commit_and_bad_names_are_exit_2(hub: StandIn) -> None:
    """A commit is no branch; an owner alone is no repository; other schemes are exit 4."""
    refused(2, "merge", BASE, ADAPTER, f"{OUT}@{'0' * 40}")
    refused(2, "merge", BASE, ADAPTER, "hf://me")
    refused(4, "merge", BASE, ADAPTER, "s3://me/out")
    assert hub.log == []


def test_room_for_two_shards_is_asked_for_before_the_work(
    hub: StandIn, wide: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 5 with the number; what all six need is not asked for."""
    three = 3 * (wide.base / "model-00001-of-00006.safetensors").stat().st_size
    spare = 64 << 20
    monkeypatch.setattr(Disk, "free_space", lambda _self, _path: three + spare)
    done("merge", wide.base, wide.adapter, OUT, "--dry-run")
    monkeypatch.setattr(Disk, "free_space", lambda _self, _path: three // 2 + spare)
    error = refused(5, "merge", wide.base, wide.adapter, OUT)
    assert (error["code"], hub.log) == ("disk-full", [])
    assert "TMPDIR" in str(error["hint"])


def test_reversible_merge_goes_whole(hub: StandIn, tmp_path: Path) -> None:
    """With its sidecar, in one commit; the base comes back from what was pushed."""
    done("merge", BASE, ADAPTER, OUT, "--reversible")
    assert len(hub.repos["me/out"].commits) == 2
    done("unmerge", OUT, ADAPTER, tmp_path / "base", "--exact")
    for file in BASE.glob("*.safetensors"):
        assert (tmp_path / "base" / file.name).read_bytes() == file.read_bytes()


def test_licence_goes_along(hub: StandIn, wide: Pair) -> None:
    """The file, and the name of it in the card."""
    done("merge", wide.base, wide.adapter, OUT)
    files = hub.repos["me/out"].files
    assert files["LICENSE"] == b"Do as you like.\n"
    assert "license: apache-2.0\n" in files["README.md"].decode()
    assert os.sep + "home" not in files["README.md"].decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_an_upload_leaves_nothing(
    hub: StandIn, passing: Path, number: signal.Signals
) -> None:
    """Exit 128 + N although the server does not answer; no temporary file, the old commit."""
    repo = hub.add("me/out", OLD)
    ended = threading.Event()
    running: list[subprocess.Popen[str]] = []

    def stop() -> None:
        running[0].send_signal(number)
        ended.wait()

    hub.when("PUT", "/lfs/", Before(stop))
    command = [sys.executable, "-m", "adaptool", "merge", str(BASE), str(ADAPTER), OUT]
    env = environment({**pointing(hub), "TMPDIR": str(passing)})
    running.append(
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    )
    _, err = running[0].communicate(timeout=60)
    ended.set()
    assert (running[0].returncode, err.splitlines()[0]) == (
        128 + number,
        f"error: stopped by {number.name}",
    )
    assert (list(passing.iterdir()), repo.files) == ([], OLD)


@pytest.mark.slow
def test_killed_at_any_request_leaves_the_old_or_the_new(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """kill -9 while the server is being asked: nothing between, and the next run completes."""
    wanted = _local(tmp_path / "out", BASE, ADAPTER)
    (tmp_path / "left").mkdir()  # nobody tidies up after kill -9
    env = environment({**pointing(hub), "TMPDIR": str(tmp_path / "left")})
    command = [sys.executable, "-m", "adaptool", "merge", str(BASE), str(ADAPTER), OUT]
    hub.add("me/out", OLD)
    count = _requests_of_a_merge(hub)
    server = hub.fault
    running: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        running[-1].kill()

    for number in range(1, count + 1):
        hub.log.clear()
        hub.stored.clear()
        repo = hub.add("me/out", OLD)
        monkeypatch.setattr(hub, "fault", _at(hub, server, number, Before(kill)))
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE))
        running[-1].communicate(timeout=60)
        assert running[-1].returncode == -signal.SIGKILL
        assert repo.files == OLD or _without_card(repo.files) == wanted
    monkeypatch.setattr(hub, "fault", server)
    done("merge", BASE, ADAPTER, OUT)
    assert _without_card(hub.repos["me/out"].files) == wanted
