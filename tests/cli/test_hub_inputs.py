"""`hf://` addresses as inputs: the same result as from a local copy, and nothing left behind.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import ADAPTER, BASE
from hub_stand_in import Corrupt, StandIn, at_hand

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
URI = "hf://me/adapter"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, passing: Path) -> Iterator[StandIn]:
    """A Hub with the fixture's adapter and base; temporary directories are seen."""
    del passing
    with StandIn() as server:
        for name, folder in (("me/adapter", ADAPTER), ("me/base", BASE)):
            server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        at_hand(monkeypatch, server)
        yield server


def test_inspect_and_validate_take_an_address(adaptool: Adaptool, hub: StandIn) -> None:
    """The summary names the address; --base may be one as well."""
    here, there = adaptool("inspect", ADAPTER), adaptool("inspect", f"{URI}@main")
    assert there.pop("path") == f"{URI}@main"
    here.pop("path")
    assert there == here
    assert adaptool("validate", URI, "--base", "hf://me/base")["ok"] is True
    hub.repos["me/adapter"].commit({"adapter_config.json": b"{}", WEIGHTS: b"junk"})
    assert adaptool("validate", URI, code=1)["ok"] is False


def test_merge_of_addresses_is_the_merge_of_copies(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """The same bytes; the receipt records addresses and commits, and no temporary name."""
    adaptool("merge", BASE, ADAPTER, tmp_path / "here", "--add", f"{ADAPTER}=0.5")
    adaptool("merge", "hf://me/base", URI, tmp_path / "there", "--add", f"{URI}@main=0.5")
    for file in (tmp_path / "here").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()
    receipt = json.loads((tmp_path / "there" / "adaptool.json").read_text())
    heads = [hub.repos[name].head for name in ("me/base", "me/adapter", "me/adapter")]
    assert [each["commit"] for each in receipt["inputs"]] == heads
    assert [each["uri"] for each in receipt["inputs"]] == ["hf://me/base", URI, f"{URI}@main"]
    assert [each["name"] for each in receipt["inputs"]] == ["base", "adapter", "adapter"]
    assert adaptool("verify", BASE, ADAPTER, tmp_path / "there", "--add", ADAPTER)["ok"] is True


def test_resize_convert_and_combine_take_an_address(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """The same bytes as from a local copy."""
    del hub
    for name, source in (("here", ADAPTER), ("there", URI)):
        adaptool("resize", source, tmp_path / f"resized-{name}", "--rank", "2")
        adaptool("convert", source, tmp_path / f"{name}.safetensors", "--to", "peft")
        adaptool("combine", source, ADAPTER, "-o", tmp_path / f"combined-{name}")
    for form in ("resized-{}/" + WEIGHTS, "combined-{}/" + WEIGHTS, "{}.safetensors"):
        here, there = (tmp_path / form.format(name) for name in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()


def test_single_file_of_a_repository_is_an_input(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """An adapter that is one file among others."""
    adaptool("convert", ADAPTER, tmp_path / "style.safetensors", "--to", "peft")
    content = (tmp_path / "style.safetensors").read_bytes()
    hub.add("me/styles", {"a.safetensors": content, "b.safetensors": content})
    assert adaptool("inspect", "hf://me/styles/a.safetensors")["module_count"] == 14


def test_damaged_or_missing_input_is_the_pulls_own_error(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Exit 9 and 6, nothing written."""
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Corrupt())
    adaptool("merge", BASE, URI, tmp_path / "out", code=9)
    adaptool("inspect", "hf://me/none", code=6)
    adaptool("inspect", "hf://me", code=2)
    assert not (tmp_path / "out").exists()
