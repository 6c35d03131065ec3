"""The card of what is pushed: read back by the Hub's own client, whoever made the commit.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from command_line import ADAPTER, BASE
from hub_stand_in import StandIn, at_hand

Adaptool = Callable[..., Any]
CARD = b"""---
license: other
license_name: "llama3.1"
license_link: https://example.org/LICENSE
pipeline_tag: text-generation
tags:
- theirs
---
# Base
license: mit
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with a base that has a card, and two adapters."""
    with StandIn() as server:
        for name, folder in (("me/one", ADAPTER), ("me/two", ADAPTER), ("org/base", BASE)):
            server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        server.repos["org/base"].commit({**server.repos["org/base"].files, "README.md": CARD})
        at_hand(monkeypatch, server)
        yield server


def _card(hub: StandIn, repo: str) -> ModelCard:
    return ModelCard(hub.repos[repo].files["README.md"].decode())


def _front(hub: StandIn, repo: str) -> dict[str, Any]:
    front = _card(hub, repo).data.to_dict()
    assert isinstance(front, dict)
    return front


def _named(folder: Path, base: str) -> Path:
    """A copy of the adapter that calls its base so."""
    shutil.copytree(ADAPTER, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    changed = json.dumps({**config, "base_model_name_or_path": base})
    (folder / "adapter_config.json").write_text(changed)
    return folder


CARRIED = {
    "license": "other",
    "license_name": "llama3.1",
    "license_link": "https://example.org/LICENSE",
    "pipeline_tag": "text-generation",
}


def test_merge_of_one_adapter_is_a_finetune_of_both(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Names from the addresses, licence and task from the base's card; by either way there."""
    adaptool("merge", "hf://org/base", "hf://me/one", "hf://me/out")
    expected = {
        "base_model": ["org/base", "me/one"],
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "tags": ["merge"],
        **CARRIED,
    }
    assert _front(hub, "me/out") == expected
    adaptool("merge", "hf://org/base", "hf://me/one", tmp_path / "out")
    adaptool("push", tmp_path / "out", "hf://me/again")
    assert _front(hub, "me/again") == expected
    adaptool("pull", "hf://org/base", tmp_path / "base")
    adaptool("merge", tmp_path / "base", "hf://me/one", "hf://me/third")
    assert _front(hub, "me/third") == expected


def test_merge_of_several_adapters_is_a_merge(adaptool: Adaptool, hub: StandIn) -> None:
    """An adapter that the Hub does not know is left out of the list."""
    several = ("--add", "hf://me/two=0.5", "--add", ADAPTER)
    adaptool("merge", "hf://org/base", "hf://me/one", "hf://me/out", *map(str, several))
    front = _front(hub, "me/out")
    assert front["base_model"] == ["org/base", "me/one", "me/two"]
    assert front["base_model_relation"] == "merge"


def test_base_on_this_disk_is_called_as_the_adapter_calls_it(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Where that can be a name on the Hub; a local path never leaves, by no part of the card."""
    for place, base, named in (
        ("a", "org/base", "org/base"),
        ("b", "/home/me/base", None),
        ("c", "./base", None),
        ("d", str(BASE), None),
    ):
        adapter = _named(tmp_path / place, base)
        adaptool("merge", BASE, adapter, f"hf://me/{place}")
        front = _front(hub, f"me/{place}")
        assert front.get("base_model") == named
        assert ("base_model_relation" in front) is (named is not None)
        text = str(_card(hub, f"me/{place}"))
        assert "/home" not in text
        assert str(tmp_path) not in text
        assert str(BASE) not in text


def test_directory_of_this_machine_is_no_name_on_the_hub(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models/base` is a path where there is such a directory."""
    adapter = _named(tmp_path / "adapter", "models/base")
    monkeypatch.chdir(tmp_path)
    adaptool("merge", BASE, adapter, "hf://me/other")
    assert _front(hub, "me/other")["base_model"] == "models/base"
    (tmp_path / "models" / "base").mkdir(parents=True)
    adaptool("merge", BASE, adapter, "hf://me/out")
    assert "base_model" not in _front(hub, "me/out")


def test_body_has_recipe_and_statistics(adaptool: Adaptool, hub: StandIn) -> None:
    """Tables of what it is, what it was made of, with which options, and what was measured."""
    commit = hub.repos["org/base"].head
    said = adaptool("merge", "hf://org/base", ADAPTER, "hf://me/out", "--weight", "0.5")
    text = _card(hub, "me/out").content
    for row in (
        "# out",
        "| architecture | LlamaForCausalLM |",
        "| made by | adaptool merge |",
        f"| base | base | | hf://org/base at {commit[:12]} |",
        "| precision | float64 |",
        f"| changed fraction | {said['stats']['changed_fraction']:.6g} |",
    ):
        assert row in text.replace("|  |", "| |"), text
    assert "| adapter | adapter | 0.5 | sha256 " in text


def test_licences_that_differ_are_not_chosen_from(adaptool: Adaptool, hub: StandIn) -> None:
    """One adapter of two under different licences names none."""
    for name, licence in (("me/one", b"mit"), ("me/two", b"apache-2.0")):
        card = b"---\nlicense: " + licence + b"\n---\n"
        hub.repos[name].commit({**hub.repos[name].files, "README.md": card})
    adaptool("combine", "hf://me/one", "hf://me/two", "--out", "hf://me/out")
    assert "license" not in _front(hub, "me/out")
    adaptool("combine", "hf://me/one", "hf://me/one", "--out", "hf://me/same")
    assert _front(hub, "me/same")["license"] == "mit"


def test_extracted_adapter_names_the_base_it_was_taken_from(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Its address is known, whatever its config says."""
    adaptool("merge", "hf://org/base", ADAPTER, tmp_path / "tuned")
    adaptool("extract", "hf://org/base", tmp_path / "tuned", "hf://me/out", "--rank", "8")
    front = _front(hub, "me/out")
    assert (front["base_model"], front["base_model_relation"]) == ("org/base", "adapter")
    assert front["library_name"] == "peft"
