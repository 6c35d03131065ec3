"""Small denoisers of diffusers, and what its loader makes of a file of adapters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import diffusers.loaders
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

Deltas = dict[str, torch.Tensor]
_UNET = {"cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4, "sample_size": 8}
_JOINT = {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 16}


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A class of diffusers with small settings, and the mixin that loads its adapters."""

    kind: str
    mixin: str
    settings: Mapping[str, Any]
    component: str = field(default="transformer")

    @property
    def original_names(self) -> bool:
        """Whether kohya's trainer names its modules after the original checkpoint's."""
        return self.kind not in {
            "UNet2DConditionModel",
            "LTXVideoTransformer3DModel",
            "SanaTransformer2DModel",
        }

    def build(self) -> nn.Module:
        """The model; its weights count for nothing here."""
        torch.manual_seed(0)
        made: nn.Module = getattr(diffusers, self.kind)(**self.settings)
        return made.eval()

    def modules(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what an adapter may train: linear layers and convolutions."""
        return {
            name: tuple(module.weight.shape)
            for name, module in self.build().named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }


DENOISERS: Mapping[str, Denoiser] = {
    "sd": Denoiser(
        "UNet2DConditionModel",
        "StableDiffusionLoraLoaderMixin",
        {**_UNET, "block_out_channels": (16,) * 4},
        "unet",
    ),
    "sdxl": Denoiser(
        "UNet2DConditionModel",
        "StableDiffusionXLLoraLoaderMixin",
        {
            **_UNET,
            "block_out_channels": (16,) * 3,
            "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 32,
        },
        "unet",
    ),
    "sd3": Denoiser(
        "SD3Transformer2DModel",
        "SD3LoraLoaderMixin",
        {**_JOINT, "sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4}
        | {"attention_head_dim": 8, "caption_projection_dim": 16, "pooled_projection_dim": 8},
    ),
    "flux": Denoiser(
        "FluxTransformer2DModel",
        "FluxLoraLoaderMixin",
        {**_JOINT, "in_channels": 4, "num_single_layers": 2, "attention_head_dim": 8}
        | {"pooled_projection_dim": 8, "axes_dims_rope": (4, 2, 2), "guidance_embeds": True},
    ),
    "flux2": Denoiser(
        "Flux2Transformer2DModel",
        "Flux2LoraLoaderMixin",
        {**_JOINT, "in_channels": 4, "num_single_layers": 2, "attention_head_dim": 16}
        | {"axes_dims_rope": (4, 4, 4, 4)},
    ),
    "qwen_image": Denoiser(
        "QwenImageTransformer2DModel",
        "QwenImageLoraLoaderMixin",
        {**_JOINT, "in_channels": 16, "out_channels": 4, "attention_head_dim": 16}
        | {"axes_dims_rope": (8, 4, 4)},
    ),
    "wan": Denoiser(
        "WanTransformer3DModel",
        "WanLoraLoaderMixin",
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
        | {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32},
    ),
    "lumina2": Denoiser(
        "Lumina2Transformer2DModel",
        "Lumina2LoraLoaderMixin",
        {"sample_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2}
        | {"num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2}
        | {"axes_dim_rope": (4, 2, 2), "cap_feat_dim": 8},
    ),
    "hunyuan_video": Denoiser(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoLoraLoaderMixin",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10}
        | {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 1}
        | {"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4)},
    ),
    "z_image": Denoiser(
        "ZImageTransformer2DModel",
        "ZImageLoraLoaderMixin",
        {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 32}
        | {"n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
        | {"axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]},
    ),
    "ltx": Denoiser(
        "LTXVideoTransformer3DModel",
        "LTXVideoLoraLoaderMixin",
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8}
        | {"cross_attention_dim": 16, "num_layers": 2, "caption_channels": 16},
    ),
    "sana": Denoiser(
        "SanaTransformer2DModel",
        "SanaLoraLoaderMixin",
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2}
        | {"attention_head_dim": 8, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
        | {"cross_attention_dim": 16, "caption_channels": 8, "sample_size": 8},
    ),
}


def loaded_by_diffusers(denoiser: Denoiser, file: Path) -> Deltas:
    """The deltas that diffusers' loader applies, by module."""
    model: Any = denoiser.build()
    mixin: Any = getattr(diffusers.loaders, denoiser.mixin)
    given: dict[str, Any] = {"return_lora_metadata": True}
    if denoiser.component == "unet":
        given["unet_config"] = model.config
    if "return_alphas" in inspect.signature(mixin.lora_state_dict).parameters:
        given["return_alphas"] = True
    state, *others = mixin.lora_state_dict(str(file), **given)
    alphas, metadata = (others[0], others[1]) if len(others) == 2 else (None, others[0])
    model.load_lora_adapter(
        state,
        prefix=denoiser.component,
        network_alphas=alphas or None,
        metadata=metadata,
        adapter_name="default",
    )
    return _deltas_of(model, lambda name: name)


def loaded_by_peft(denoiser: Denoiser, folder: Path) -> Deltas:
    """The deltas that PEFT applies to the component."""
    tuned = PeftModel.from_pretrained(denoiser.build(), str(folder), adapter_name="default")
    return _deltas_of(tuned, lambda name: name.removeprefix("base_model.model."))


def _deltas_of(model: nn.Module, named: Callable[[str], str]) -> Deltas:
    return {
        named(name): layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A
    }
