"""Every input of every command may be an `hf://` address, and gives what a local copy gives.

The inputs are read off the command line itself, so a new one fails here until it is walked too.
The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptool import api
from adaptool.cli import values
from adaptool.cli.main import group
from command_line import ADAPTER, BASE
from hub_stand_in import StandIn, at_hand
from unmerging import lost

Adaptool = Callable[..., Any]
Walked = Callable[[str, Mapping[str, str], str], tuple[Any, dict[str, Any]]]

LOCAL, HUB, EVERYTHING = "here", "hf://me/", "everything"

TAKE_ADDRESSES = {values.artifact, values.strength}
# Paths that are no input, beside every FILE, which is written.
OWN_PATHS = {("pull", "out"), ("push", "path"), ("run", "recipe")}


@dataclass(frozen=True)
class Walk:
    """A command with something in every input: names of artifacts, by the parameter's name."""

    inputs: Mapping[str, Sequence[str]]
    flags: Sequence[str] = ()
    out: bool = False


WALKS: Mapping[str, Walk] = {
    "inspect": Walk({"paths": ("adapter", "other"), "base": ("base",)}, ("--values",)),
    "validate": Walk({"paths": ("adapter", "other"), "base": ("base",)}, ("--values",)),
    "diff": Walk({"a": ("adapter",), "b": ("other",), "base": ("base",)}),
    "merge": Walk(
        {
            "base": ("base",),
            "adapter": ("adapter",),
            "add": ("other=0.5",),
            "init_adapter": ("initial",),
        },
        out=True,
    ),
    "verify": Walk(
        {
            "base": ("base",),
            "adapter": ("adapter",),
            "merged": ("merged",),
            "add": ("other",),
            "init_adapter": ("initial",),
        },
        ("--exact",),
    ),
    "unmerge": Walk(
        {
            "merged": ("merged",),
            "adapter": ("adapter",),
            "add": ("other",),
            "init_adapter": ("initial",),
        },
        ("--exact",),
        out=True,
    ),
    "resize": Walk({"adapter": ("adapter",), "base": ("base",)}, ("--rank", "2"), out=True),
    "combine": Walk({"adapters": ("adapter", "other"), "base": ("base",)}, out=True),
    "convert": Walk(
        {"adapter": ("pissa",), "base": ("base",), "init_adapter": ("initial",)},
        ("--to", "lora"),
        out=True,
    ),
    "extract": Walk({"base": ("base",), "tuned": ("merged",)}, ("--rank", "2"), out=True),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything by name, in one folder: the fixtures, adapters beside them, a merge of all."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, fixture in (("base", BASE), ("adapter", ADAPTER)):
        (folder / name).symlink_to(fixture)
    api.combine(ADAPTER, weights=[0.25], out=folder / "other")
    api.combine(ADAPTER, weights=[0.5], out=folder / "initial")
    api.merge(
        BASE,
        ADAPTER,
        folder / "merged",
        add=[folder / "other"],
        init_adapter=folder / "initial",
        reversible=True,
    )
    shutil.copytree(ADAPTER, folder / "pissa")
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    text = json.dumps({**config, "init_lora_weights": "pissa"})
    (folder / "pissa" / "adapter_config.json").write_text(text)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def hub(
    artifacts: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, passing: Path
) -> Iterator[StandIn]:
    """A repository for each artifact; nothing is left in the temporary directory."""
    del passing
    with StandIn() as server:
        for name, folder in artifacts.items():
            server.add(f"me/{name}", {path.name: path.read_bytes() for path in folder.iterdir()})
        at_hand(monkeypatch, server)
        yield server


def _parameters(name: str) -> list[click.Parameter]:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command.params


def _kind(parameter: click.Parameter) -> object:
    """The function that reads it, or click's own type."""
    return getattr(parameter.type, "func", parameter.type)


def _inputs(name: str) -> set[str]:
    found = (each for each in _parameters(name) if _kind(each) in TAKE_ADDRESSES)
    return {str(parameter.name) for parameter in found}


COMMANDS = group.list_commands(click.Context(group))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_input_is_walked(name: str) -> None:
    """Each one that takes an address stands in the table above."""
    assert _inputs(name) == set(WALKS[name].inputs if name in WALKS else ())


@pytest.mark.parametrize("name", COMMANDS)
def test_paths_that_take_no_address_are_written_or_sent(name: str) -> None:
    """Nobody reads an artifact from a path that must be local."""
    local = {
        (name, str(parameter.name))
        for parameter in _parameters(name)
        if _kind(parameter) == values.local_path and parameter.metavar != "FILE"
    }
    assert local <= OWN_PATHS


CASES = [(name, place) for name, walk in WALKS.items() for place in [*walk.inputs, EVERYTHING]]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_an_address_gives_what_a_local_copy_gives(
    name: str, place: str, walked: Walked, hub: StandIn
) -> None:
    """The same answer and the same files; the receipt says where the input came from."""
    inputs = WALKS[name].inputs
    here = walked(name, dict.fromkeys(inputs, LOCAL), "here")
    assert hub.log == []
    addressed = inputs if place == EVERYTHING else {place}
    there = walked(name, {key: HUB if key in addressed else LOCAL for key in inputs}, "there")
    assert hub.asked("GET", "/resolve/")
    assert there == here


@pytest.fixture
def walked(adaptool: Adaptool, artifacts: Mapping[str, Path], tmp_path: Path) -> Walked:
    """Runs a walk with its inputs below these roots; what it said and what it wrote."""
    local = next(iter(artifacts.values())).parent

    def walk(name: str, roots: Mapping[str, str], out: str) -> tuple[Any, dict[str, Any]]:
        places = {key: f"{local}/" if root == LOCAL else root for key, root in roots.items()}
        said = json.dumps(adaptool(name, *_arguments(name, places, tmp_path / out)))
        said = said.replace(HUB, f"{local}/").replace(str(tmp_path / out), "OUT")
        return _timeless(said), _files(tmp_path / out)

    return walk


def test_unmerge_brings_every_file_that_the_merge_copied(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Code and folders, which no other command needs of a model on the Hub."""
    base, merged, out = (tmp_path / name for name in ("base", "merged", "out"))
    shutil.copytree(BASE, base)
    (base / "modeling_own.py").write_text("# code of the model\n")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    adaptool("merge", base, ADAPTER, merged, "--reversible")
    files = (path for path in merged.rglob("*") if path.is_file())
    hub.add("me/own", {path.relative_to(merged).as_posix(): path.read_bytes() for path in files})
    assert adaptool("unmerge", "hf://me/own", ADAPTER, out)["exact"] is True
    assert lost(base, out) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("diff", ADAPTER, ADAPTER),
        ("convert", ADAPTER, "OUT", "--to", "peft"),
        ("combine", ADAPTER, ADAPTER, "--out", "OUT"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_base_that_lends_its_names_is_not_downloaded(
    arguments: Sequence[str | Path], adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """Its shards are read in ranges: no more than the headers."""
    out = str(tmp_path / "out.safetensors")
    adaptool(*(out if each == "OUT" else each for each in arguments), "--base", "hf://me/base")
    shards = hub.asked("GET", "/resolve/.*safetensors$")
    assert len(shards) == 2
    assert all("range" in request.headers for request in shards)


@pytest.mark.usefixtures("hub")
def test_whole_tensors_are_summed_on_a_base_on_the_hub(adaptool: Adaptool, tmp_path: Path) -> None:
    """Where weights do not add up to 1 the base's own values come, and it counts as an input."""
    saved = tmp_path / "saved"
    shutil.copytree(ADAPTER, saved)
    tensors = load_file(saved / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = torch.ones(256, 64)
    save_file(tensors, saved / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((saved / "adapter_config.json").read_text())
    text = json.dumps({**config, "modules_to_save": ["lm_head"]})
    (saved / "adapter_config.json").write_text(text)
    arguments = ("combine", saved, ADAPTER, "--weights", "0.25,1", "--out")
    error = adaptool(*arguments, tmp_path / "alone", code=4)["error"]
    assert error["hint"] == "--base BASE"
    adaptool(*arguments, tmp_path / "here", "--base", BASE)
    adaptool(*arguments, tmp_path / "there", "--base", "hf://me/base")
    here, there = (tmp_path / name / "adapter_model.safetensors" for name in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    (head,) = (
        tensors["lm_head.weight"]
        for tensors in map(load_file, BASE.glob("*.safetensors"))
        if "lm_head.weight" in tensors
    )
    found = load_file(here)["base_model.model.lm_head.weight"]
    assert torch.allclose(found, (0.75 * head.double() + 0.25).float())
    receipt = json.loads((tmp_path / "there" / "adaptool.json").read_text())
    assert [entry["name"] for entry in receipt["inputs"]] == ["base", "saved", ADAPTER.name]


def test_an_output_without_a_name_is_called_after_the_repository(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or after its folder or file; never after the revision."""
    adaptool("convert", ADAPTER, tmp_path / "a.safetensors", "--to", "peft")
    content = (tmp_path / "a.safetensors").read_bytes()
    hub.add("me/styles", {"a.safetensors": content, "b.safetensors": content})
    monkeypatch.chdir(tmp_path)
    for address, name in (
        ("hf://me/adapter@main", "adapter-resized"),
        ("hf://me/styles/a.safetensors", "a-resized.safetensors"),
    ):
        assert adaptool("resize", address, "--rank", "2")["out"] == name
        assert (tmp_path / name).exists()


def _arguments(name: str, roots: Mapping[str, str], out: Path) -> list[str]:
    """The walk's command line, each input below its root."""
    walk, given = WALKS[name], []
    for parameter in _parameters(name):
        key = str(parameter.name)
        if key == "out" and walk.out:
            given += [str(out)] if isinstance(parameter, click.Argument) else ["--out", str(out)]
        for artifact in walk.inputs.get(key, ()):
            option = [] if isinstance(parameter, click.Argument) else [max(parameter.opts, key=len)]
            given += [*option, f"{roots[key]}{artifact}"]
    return [*given, *walk.flags]


def _timeless(answer: str) -> Any:
    said = json.loads(answer)
    said.pop("seconds", None)
    return said


def _files(folder: Path) -> dict[str, Any]:
    """Name -> bytes; of a receipt's inputs what is known of them in both places."""
    found: dict[str, Any] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        found[path.name] = path.read_bytes()
    if "adaptool.json" in found:
        receipt = json.loads(found["adaptool.json"])
        for entry in receipt["inputs"]:
            assert ("uri" in entry) == ("commit" in entry)
            for key in ("uri", "commit"):
                entry.pop(key, None)
            for shard in entry.get("shards", ()):
                shard.pop("fingerprint", None)
                shard.pop("sha256", None)
        found["adaptool.json"] = receipt
    return found
