"""LyCORIS' own modules against a merge of their files: the merged layer computes what they do.

The judge is `forward`: its merge takes alpha / r twice for LoHa and LoKr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import load_file, save_file
from torch import nn

from adaptool.api import merge

FLAT = "lora_unet_down_blocks_0_resnets_0_conv1"
PATH = "down_blocks.0.resnets.0.conv1"
OUT, IN, TOLERANCE = 12, 8, 2e-5


def _linear() -> nn.Module:
    return nn.Linear(IN, OUT)


def _conv() -> nn.Module:
    return nn.Conv2d(IN, OUT, 3, padding=1)


def _point() -> nn.Module:
    return nn.Conv2d(IN, OUT, 1)


def _line() -> nn.Module:
    return nn.Conv1d(IN, OUT, 3, padding=1)


def _norm() -> nn.Module:
    return nn.LayerNorm(IN)


def _groups() -> nn.Module:
    return nn.GroupNorm(2, IN)


@dataclass(frozen=True)
class Case:
    """One algorithm on one layer, with options of its module's."""

    name: str
    module: Callable[..., Any]
    layer: Callable[[], nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)


LAYERS = {"linear": _linear, "conv": _conv, "1x1": _point}
DORA = {"out": {"weight_decompose": True}, "in": {"weight_decompose": True, "wd_on_out": False}}
CASES = (
    *(Case(f"locon {kind}", LoConModule, layer) for kind, layer in LAYERS.items()),
    Case("locon tucker", LoConModule, _conv, {"use_tucker": True}),
    Case("locon rslora", LoConModule, _linear, {"rs_lora": True}),
    Case("locon conv1d", LoConModule, _line),
    *(
        Case(f"dora {axis} {kind}", LoConModule, layer, options)
        for axis, options in DORA.items()
        for kind, layer in LAYERS.items()
    ),
    Case("dora tucker", LoConModule, _conv, {"use_tucker": True, "weight_decompose": True}),
    *(Case(f"loha {kind}", LohaModule, layer) for kind, layer in LAYERS.items()),
    Case("loha tucker", LohaModule, _conv, {"use_tucker": True}),
    *(Case(f"lokr {kind}", LokrModule, layer, {"factor": 2}) for kind, layer in LAYERS.items()),
    Case("lokr both", LokrModule, _linear, {"factor": 4, "decompose_both": True, "lora_dim": 1}),
    Case("lokr thin", LokrModule, _linear, {"factor": 2, "lora_dim": 1}),
    Case("lokr thin conv", LokrModule, _conv, {"factor": 2, "lora_dim": 1}),
    Case("lokr tucker", LokrModule, _conv, {"factor": 2, "lora_dim": 1, "use_tucker": True}),
    Case("lokr full", LokrModule, _conv, {"factor": 2, "full_matrix": True}),
    Case("lokr conv1d", LokrModule, _line, {"factor": 2}),
    *(Case(f"glora {kind}", GLoRAModule, layer) for kind, layer in LAYERS.items()),
    *(Case(f"ia3 {kind}", IA3Module, layer) for kind, layer in LAYERS.items()),
    *(
        Case(f"ia3 input {kind}", IA3Module, layer, {"train_on_input": True})
        for kind, layer in LAYERS.items()
    ),
    *(Case(f"full {kind}", FullModule, layer) for kind, layer in LAYERS.items()),
    Case("norm layer", NormModule, _norm),
    Case("norm group", NormModule, _groups),
    *(
        Case(f"dylora {kind}", DyLoraModule, layer, {"block_size": 1, "lora_dim": 1})
        for kind, layer in LAYERS.items()
    ),
)


def _train(module: nn.Module) -> None:
    """Random numbers in every parameter; magnitudes stay near what they began as."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            step = torch.randn_like(parameter)
            if name == "dora_scale":
                parameter.mul_(1 + 0.2 * step)
            else:
                parameter.copy_(0.3 * step)


def _input(layer: nn.Module) -> torch.Tensor:
    torch.manual_seed(5)
    shapes = {nn.Conv2d: (2, IN, 5, 5), nn.Conv1d: (2, IN, 7), nn.GroupNorm: (2, IN, 5)}
    return torch.randn(shapes.get(type(layer), (2, 4, IN)))


def _wrapped(case: Case, layer: nn.Module) -> Any:
    if case.module is NormModule:
        made = NormModule(FLAT, layer, 1.0)
    else:
        made = case.module(FLAT, layer, **{"lora_dim": 2, "alpha": 1.0, **case.options})
    _train(made)
    if case.module is FullModule:
        # Until it is applied its weight is the difference, which only a merge would add.
        made.apply_to()
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merged_layer_computes_what_the_module_does(case: Case, tmp_path: Path) -> None:
    """From its file and the layer's weights, on random input."""
    torch.manual_seed(1)
    layer = case.layer()
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    base = tmp_path / "base"
    base.mkdir()
    save_file({f"{PATH}.{name}": value for name, value in weights.items()}, base / "m.safetensors")
    wrapped = _wrapped(case, layer)
    given = _input(layer)
    with torch.inference_mode():
        expected = wrapped(given)
    written = {
        f"{FLAT}.{name}": value.detach().contiguous()
        for name, value in wrapped.state_dict().items()
    }
    save_file(written, tmp_path / "lora.safetensors")
    merge(base, tmp_path / "lora.safetensors", tmp_path / "out")
    merged = case.layer()
    found = _loaded(tmp_path / "out")
    merged.load_state_dict({name: found[f"{PATH}.{name}"] for name in weights})
    with torch.inference_mode():
        result = merged(given)
        plain = case.layer()
        plain.load_state_dict(weights)
        before = plain(given)
    change = (expected - before).norm()
    assert change > 1e-2
    assert (result - expected).norm() <= TOLERANCE * change


def _loaded(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors
