"""The same weights stored otherwise give the same merged weights, whatever the tuner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adaptool.errors import MismatchError
from adaptool.model.tuner import OUTPUTS
from adaptool.tuners import tuners
from golden_cases import Tensors, tensors_of
from tuner_cases import Case, Pair, cases, make

Layout = Callable[[Tensors], Tensors]
LAYERS = ("model.layers.0", "model.layers.1")
# What another layout names is looked up by names that only its own base has.
NAMED = [case for case in cases() if case.example.truth != "elsewhere"]
LLAMA = [case for case in NAMED if case.example.model == "llama"]
PHI3 = [case for case in NAMED if case.example.model == "phi3"]


def fused(tensors: Tensors) -> Tensors:
    """q, k and v in one tensor, gate and up in another, as phi3 has them."""
    found = dict(tensors)
    for layer in LAYERS:
        for parent, members, name in (
            ("self_attn", ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
            ("mlp", ("gate_proj", "up_proj"), "gate_up_proj"),
        ):
            parts = [found.pop(f"{layer}.{parent}.{member}.weight") for member in members]
            found[f"{layer}.{parent}.{name}.weight"] = torch.cat(parts)
    return found


def separate(tensors: Tensors) -> Tensors:
    """phi3's fused projections one by one: 32, 16 and 16 outputs, twice 48."""
    found = dict(tensors)
    for layer in LAYERS:
        for parent, members, name in (
            ("self_attn", {"q_proj": 32, "k_proj": 16, "v_proj": 16}, "qkv_proj"),
            ("mlp", {"gate_proj": 48, "up_proj": 48}, "gate_up_proj"),
        ):
            parts = found.pop(f"{layer}.{parent}.{name}.weight").split(list(members.values()))
            for member, part in zip(members, parts, strict=True):
                found[f"{layer}.{parent}.{member}.weight"] = part.contiguous()
    return found


def turned(tensors: Tensors) -> Tensors:
    """Layers' weights as (in, out), the way Conv1D has them."""
    return {
        name: value.T.contiguous() if value.ndim == 2 and ".layers." in name else value
        for name, value in tensors.items()
    }


def _stored(pair: Pair, layout: Layout, kind: str, where: Path) -> Pair:
    """The pair with its base written in another layout."""
    where.mkdir()
    save_file(layout(tensors_of(pair.base)), where / "model.safetensors")
    config = json.loads((pair.base / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    return replace(pair, base=where)


def _check(case: Case, layout: Layout, kind: str, tmp_path: Path, root: Path) -> None:
    pair = make(case, root)
    expected = layout(pair.merged(tmp_path / "out"))
    other = _stored(pair, layout, kind, tmp_path / "base")
    found = other.merged(tmp_path / "other")
    assert found.keys() == expected.keys()
    wrong = [
        name
        for name, value in expected.items()
        if not torch.allclose(found[name], value, rtol=1e-6, atol=1e-7)
    ]
    assert wrong == []
    shutil.rmtree(tmp_path / "base")


@pytest.mark.parametrize("case", LLAMA, ids=lambda case: case.name)
def test_base_that_fuses_projections(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An adapter of q_proj and up_proj on a base with qkv_proj and gate_up_proj."""
    _check(case, fused, "phi3", tmp_path, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("case", LLAMA, ids=lambda case: case.name)
def test_base_that_stores_weights_transposed(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The family says so, as GPT-2's does; what mixes elements may refuse."""
    try:
        _check(case, turned, "gpt2", tmp_path, tmp_path_factory.getbasetemp())
    except MismatchError:
        assert tuners()[case.tuner].DECLARATION.mixes


@pytest.mark.parametrize("case", PHI3, ids=lambda case: case.name)
def test_base_that_stores_projections_apart(
    case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An adapter of qkv_proj on a base with q, k and v; refused where all outputs are mixed."""
    root = tmp_path_factory.getbasetemp()
    if OUTPUTS in tuners()[case.tuner].DECLARATION.mixes:
        with pytest.raises(MismatchError):
            _check(case, separate, "llama", tmp_path, root)
        return
    _check(case, separate, "llama", tmp_path, root)
