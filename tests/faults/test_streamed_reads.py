"""A base on the Hub whose shards are split through a layer: what a delta reads lies in another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import adaptool
from golden_cases import tensors_of
from hub_stand_in import StandIn, at_hand
from tuner_cases import Case, examples, make

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("weights_first", [True, False])
def test_a_delta_that_reads_a_tensor_of_another_shard_finds_it_here(
    weights_first: bool, passing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLoRA's change of a bias is made of the layer's weight, wherever the weight lies."""
    del passing
    example = next(found for found in examples("glora") if found.note == "bias from weight")
    made = make(Case("glora", example, 7), tmp_path)
    base = _by_kind(made.base, tmp_path / "sharded", weights_first=weights_first)
    adaptool.merge(base, made.adapter, tmp_path / "local")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with StandIn() as server:
        server.add("me/base", {path.name: path.read_bytes() for path in base.iterdir()})
        at_hand(monkeypatch, server)
        adaptool.merge("hf://me/base", made.adapter, tmp_path / "out")
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "local")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in ours.values())


def _by_kind(model: Path, out: Path, *, weights_first: bool) -> Path:
    """The model with its biases in one shard and everything else in the other."""
    tensors = tensors_of(model)
    biases = {name: value for name, value in tensors.items() if name.endswith(".bias")}
    weights = {name: value for name, value in tensors.items() if name not in biases}
    out.mkdir()
    shutil.copy(model / "config.json", out)
    shards = (weights, biases) if weights_first else (biases, weights)
    weight_map = {}
    for place, members in enumerate(shards, start=1):
        name = f"model-{place:05d}-of-00002.safetensors"
        save_file(members, out / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(members, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (out / INDEX).write_text(json.dumps(index))
    return out
