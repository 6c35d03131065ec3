"""cloneofsimo's numbered modules, against a walk over diffusers' own modules.

The walk is lora_diffusion's `_find_modules_v2`: every ancestor of the wanted classes in the
model's order, every linear layer below it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import adaptool
import plain_adapters as plain
from adaptool.errors import InputError, MismatchError
from exact_numbers import drawn

RANK = 2
TARGETS = {"unet": {"CrossAttention", "Attention", "GEGLU"}, "text_encoder": {"CLIPAttention"}}


def _models() -> dict[str, nn.Module]:
    """Stable Diffusion 1.x' shape, as narrow as it goes."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 24),
        cross_attention_dim=20,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    text = CLIPTextConfig(
        hidden_size=20, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    return {"unet": unet, "text_encoder": CLIPTextModel(text)}


def _walk(model: nn.Module, classes: set[str]) -> dict[str, nn.Linear]:
    found = {}
    for above, ancestor in model.named_modules():
        if type(ancestor).__name__ in classes:
            for below, module in ancestor.named_modules():
                if isinstance(module, nn.Linear):
                    found[f"{above}.{below}"] = module
    return found


@pytest.mark.parametrize("old", [False, True], ids=["new order", "old order"])
def test_numbers_are_the_modules_of_the_walk(tmp_path: Path, *, old: bool) -> None:
    """Every number gets the name of the module that the trainer met there."""
    tensors, metadata, wanted = {}, {}, {}
    for component, model in _models().items():
        walked = _walk(model, TARGETS[component])
        names = sorted(walked, key=_in_old_order(list(walked))) if old else list(walked)
        metadata[component] = json.dumps(sorted(TARGETS[component]))
        for place, name in enumerate(names):
            out, inner = walked[name].weight.shape
            up, down = drawn(2 * place, out, RANK), drawn(2 * place + 1, RANK, inner)
            tensors |= {f"{component}:{place}:up": up, f"{component}:{place}:down": down}
            metadata[f"{component}:{place}:rank"] = str(RANK)
            wanted[f"{component}.{_stored(name)}"] = up.astype("float64") @ down
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata)
    adaptool.convert(path, tmp_path / "out", to="peft")
    plain.same(plain.deltas(tmp_path / "out"), wanted)


def _stored(name: str) -> str:
    """The name in files, which have CLIP below `text_model` whatever the release."""
    return f"text_model.{name}" if name.startswith("encoder.") else name


def _in_old_order(names: list[str]):  # noqa: ANN202 - a sort key
    """Early diffusers had a block's feed-forward before its second attention."""

    def key(name: str) -> tuple[int, int]:
        block, found, inside = name.partition("transformer_blocks.0.")
        first = next(at for at, each in enumerate(names) if each.startswith(block + found))
        kinds = ("attn1", "ff", "attn2")
        kind = next((at for at, each in enumerate(kinds) if inside.startswith(each)), 0)
        return (first, kind) if found else (names.index(name), 0)

    return key


def test_inversions_beside_need_to_be_allowed(tmp_path: Path) -> None:
    """A learned token has no module."""
    tensors = {f"text_encoder:{n}:up": drawn(n, 6, RANK) for n in range(4)}
    tensors |= {f"text_encoder:{n}:down": drawn(n + 9, RANK, 6) for n in range(4)}
    path = tmp_path / "x.safetensors"
    save_file({**tensors, "<s1>": drawn(1, 6)}, path)
    with pytest.raises(InputError, match="<s1>"):
        adaptool.convert(path, tmp_path / "out", to="peft")
    adaptool.convert(path, tmp_path / "out", to="peft", allow_drop=["<*>"])


def test_a_gap_in_the_numbers_is_an_error(tmp_path: Path) -> None:
    """All behind it would be another module's."""
    path = tmp_path / "x.safetensors"
    save_file({"unet:1:up": drawn(1, 4, 2), "unet:1:down": drawn(2, 2, 4)}, path)
    with pytest.raises(InputError, match="counted"):
        adaptool.inspect(path)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_another_models_modules_are_refused(tmp_path: Path, component: str) -> None:
    """Numbers alone say nothing, so sizes must fit."""
    path = tmp_path / "x.safetensors"
    pair = {f"{component}:0:up": drawn(1, 4, 2), f"{component}:0:down": drawn(2, 2, 5)}
    save_file({name: np.ascontiguousarray(each) for name, each in pair.items()}, path)
    with pytest.raises(MismatchError, match="Stable Diffusion"):
        adaptool.inspect(path)
