"""OUT on the Hub, for every verb that writes: the files of the local run, in one commit.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import adaptool as adaptool_library
from command_line import ADAPTER, BASE
from hub_stand_in import Refuse, StandIn, at_hand

Adaptool = Callable[..., Any]
VERBS = {
    "resize": ("resize", ADAPTER, "OUT", "--rank", "2"),
    "combine": ("combine", ADAPTER, ADAPTER, "--out", "OUT"),
    "convert": ("convert", ADAPTER, "OUT", "--to", "mlx"),
    "extract": ("extract", BASE, "TUNED", "OUT", "--rank", "2"),
    "merge": ("merge", BASE, ADAPTER, "OUT"),
    "reversible": ("merge", BASE, ADAPTER, "OUT", "--reversible"),
}
Verb = Callable[..., Any]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that differs from the base."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    adaptool_library.merge(BASE, ADAPTER, folder)
    return folder


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest, adaptool: Adaptool, tuned: Path) -> Verb:
    """One of the verbs that write, with the OUT that it is given."""

    def call(out: str | Path, *flags: str, **how: Any) -> Any:
        places = {"OUT": out, "TUNED": tuned}
        words = [places.get(str(word), word) for word in VERBS[request.param]]
        return adaptool(*words, *flags, **how)

    return call


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, passing: Path) -> Iterator[StandIn]:
    """A Hub; nothing is left in the temporary directory."""
    del passing
    with StandIn() as server:
        at_hand(monkeypatch, server)
        yield server


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _sent(hub: StandIn, repo: str) -> dict[str, bytes]:
    files = hub.repos[repo].files
    return {name: files[name] for name in files if name not in {"README.md", ".gitattributes"}}


def test_output_goes_to_the_hub_in_one_commit(verb: Verb, hub: StandIn, tmp_path: Path) -> None:
    """The same bytes as in a directory, and a card; `commit` and `url` say where."""
    there, here = verb("hf://me/out"), verb(tmp_path / "out")
    repo = hub.repos["me/out"]
    assert _sent(hub, "me/out") == _files(tmp_path / "out")
    assert (there["out"], there["commit"]) == ("hf://me/out", repo.head)
    assert there["url"].endswith(f"/me/out/commit/{repo.head}")
    assert len(hub.asked("POST", "/commit/")) == 1
    assert here.keys() == there.keys() - {"commit", "url"}
    assert "README.md" in repo.files


def test_unmerge_goes_to_the_hub(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """The base's bytes."""
    adaptool("merge", BASE, ADAPTER, tmp_path / "merged", "--reversible")
    said = adaptool("unmerge", tmp_path / "merged", ADAPTER, "hf://me/base")
    assert (said["exact"], said["commit"]) == (True, hub.repos["me/base"].head)
    for file in BASE.glob("*.safetensors"):
        assert hub.repos["me/base"].files[file.name] == file.read_bytes()


def test_single_file_goes_into_a_repository(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Under its name, at the top or in a folder; a repository is not a file for its name."""
    adaptool("convert", ADAPTER, tmp_path / "style.safetensors", "--to", "peft")
    content = (tmp_path / "style.safetensors").read_bytes()
    adaptool("convert", ADAPTER, "hf://me/styles/style.safetensors", "--to", "peft")
    assert _sent(hub, "me/styles") == {"style.safetensors": content}
    adaptool("convert", ADAPTER, "hf://me/more/a/style.safetensors", "--to", "peft")
    assert _sent(hub, "me/more") == {"a/style.safetensors": content}
    adaptool("convert", ADAPTER, "hf://me/named.safetensors", "--to", "peft")
    assert "adapter_config.json" in _sent(hub, "me/named.safetensors")


def test_private_makes_a_private_repository(adaptool: Adaptool, hub: StandIn, tuned: Path) -> None:
    """A new one; for every verb that writes."""
    adaptool("merge", BASE, ADAPTER, "hf://me/a", "--private")
    adaptool("resize", ADAPTER, "hf://me/b", "--rank", "2", "--private")
    adaptool("combine", ADAPTER, ADAPTER, "--out", "hf://me/c", "--private")
    adaptool("convert", ADAPTER, "hf://me/d", "--to", "mlx", "--private")
    adaptool("extract", BASE, tuned, "hf://me/e", "--rank", "2", "--private")
    adaptool("unmerge", tuned, ADAPTER, "hf://me/f", "--private")
    assert [hub.repos[f"me/{name}"].private for name in "abcdef"] == [True] * 6


def test_private_is_refused_where_others_could_read(
    verb: Verb, hub: StandIn, tmp_path: Path
) -> None:
    """Exit 4 for a repository that is public, exit 2 where OUT is no repository."""
    verb("hf://me/out")
    assert not hub.repos["me/out"].private
    assert verb("hf://me/out", "--private", code=4)["error"]["code"] == "unsupported"
    assert verb(tmp_path / "out", "--private", code=2)["error"]["field"] == "--private"
    assert not (tmp_path / "out").exists()


def test_sums_and_provenance_are_those_of_a_directory(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Shards that are gone were digested when they left."""
    flags = ("--checksum", "--provenance")
    adaptool("merge", BASE, ADAPTER, "hf://me/out", *flags, tmp_path / "there.json")
    adaptool("merge", BASE, ADAPTER, tmp_path / "out", *flags, tmp_path / "here.json")
    assert _sent(hub, "me/out") == _files(tmp_path / "out")
    there, here = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("there", "here")
    )
    assert there["subject"] == here["subject"]


def test_people_are_told_the_page_of_the_commit(verb: Verb, hub: StandIn) -> None:
    """Beside what was written."""
    out, _ = verb("hf://me/out", text=True)
    assert f"hf://me/out at {hub.url}/me/out/commit/{hub.repos['me/out'].head} " in out


def test_dry_run_asks_nothing_of_the_network(verb: Verb, hub: StandIn) -> None:
    """And names no commit."""
    said = verb("hf://me/out", "--dry-run")
    assert (said["out"], hub.log) == ("hf://me/out", [])
    assert "commit" not in said


def test_repository_that_cannot_take_it_is_refused_before_the_work(
    verb: Verb, hub: StandIn
) -> None:
    """Exit 6, and nothing was uploaded."""
    hub.when("POST", "/preupload/", Refuse(403))
    said = verb("hf://me/out", code=6)
    assert said["error"]["code"] == "authentication"
    assert hub.asked("PUT", "") == []


def test_adapter_of_an_adapter_names_base_and_licence(adaptool: Adaptool, hub: StandIn) -> None:
    """What its config and the card beside it say."""
    files = _files(ADAPTER)
    config = files["adapter_config.json"].replace(b"fixtures/base", b"org/base")
    card = b"---\nlicense: mit\npipeline_tag: text-generation\n---\n"
    hub.add("me/one", {**files, "adapter_config.json": config, "README.md": card})
    adaptool("resize", "hf://me/one", "hf://me/two", "--rank", "2")
    front = ModelCard(hub.repos["me/two"].files["README.md"].decode()).data
    assert (front.base_model, front.base_model_relation) == ("org/base", "adapter")
    assert (front.license, front.pipeline_tag) == ("mit", "text-generation")
    assert (front.library_name, front.tags) == ("peft", ["lora"])
