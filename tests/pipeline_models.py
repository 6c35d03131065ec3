"""Tiny models of diffusion pipelines, adapters that diffusers makes for them, their other names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig

from adaptool.names.diffusion import families
from adaptool.store.adapter_files import open_adapter
from pipeline_adapters import saved, tensors_in

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def _flux() -> Any:
    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        in_channels=4,
        axes_dims_rope=(2, 2, 4),
    )


def _sd3() -> Any:
    return SD3Transformer2DModel(
        sample_size=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
    )


def _unet() -> Any:
    return UNet2DConditionModel(
        block_out_channels=(16, 16, 16, 16),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        sample_size=8,
    )


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "flux": (_flux, "transformer"),
    "sd3": (_sd3, "transformer"),
    "sd": (_unet, "unet"),
}


def trained(build: Callable[[], Any], config: LoraConfig, folder: Path) -> Any:
    """A model with an adapter of random numbers, and the adapter as diffusers saves it."""
    torch.manual_seed(0)
    model = build()
    model.add_adapter(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_lora_adapter(folder)
    return model


def with_component(folder: Path, component: str) -> Path:
    """`save_lora_adapter` leaves the prefix out that a pipeline's `save_lora_weights` writes."""
    with open_adapter(folder) as files:
        metadata = json.loads(files.header.metadata["lora_adapter_metadata"])
    packed = {f"{component}.{name}": value for name, value in metadata.items()}
    tensors = {f"{component}.{name}": value for name, value in tensors_in(folder).items()}
    path = folder / "pytorch_lora_weights.safetensors"
    return saved(path, tensors, {"lora_adapter_metadata": json.dumps(packed)}).parent


def published(model: Any, family: str, prefix: str = "model.diffusion_model.") -> dict[str, Any]:
    """The model's tensors under the published checkpoint's names, fused and swapped as there."""
    tensors = model.state_dict()
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        seat = families()[family].by_module(path)
        if seat is None:  # SD3's table of positions, which no module has
            found[f"{prefix}{name}"] = value
            continue
        key = f"{prefix}{seat.original}.{seat.original_leaf(leaf)}"
        whole = torch.cat([tensors[f"{module}.{leaf}"] for module in seat.modules])
        inner = tensors[f"{seat.modules[0]}.weight"].shape[-1]
        ((first, _), *_), *_ = seat.rows(len(whole), inner)
        found[key] = torch.cat(whole.chunk(2)[::-1]) if first else whole
    return {name: value.clone() for name, value in found.items()}
