"""kohya's files as diffusers' own loaders read them: the effect is the same as ours.

Two of its known faults are held here, because what we do differs from it there: it drops
`dora_scale`, and modules of Flux outside the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import (
    FluxLoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline_adapters import (
    Effect,
    converted,
    effect_of,
    factors,
    read,
    saved,
    tensors_in,
    values,
)

WIDTH = 16


def _sd() -> Any:
    return UNet2DConditionModel(
        block_out_channels=(WIDTH,) * 4,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        sample_size=8,
    )


def _sdxl() -> Any:
    return UNet2DConditionModel(
        block_out_channels=(WIDTH,) * 3,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        sample_size=8,
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32,
    )


WIDE, MLP = 3072, 12288
# diffusers' converter has the sizes of Flux built in.
FLUX = {
    **{f"transformer_blocks.0.attn.to_{part}": (WIDE, WIDE) for part in ("q", "k", "v", "out.0")},
    **{f"transformer_blocks.0.attn.add_{part}_proj": (WIDE, WIDE) for part in "qkv"},
    "transformer_blocks.0.attn.to_add_out": (WIDE, WIDE),
    "transformer_blocks.0.ff.net.0.proj": (MLP, WIDE),
    "transformer_blocks.0.ff_context.net.2": (WIDE, MLP),
    "transformer_blocks.0.norm1.linear": (6 * WIDE, WIDE),
    **{f"single_transformer_blocks.0.attn.to_{part}": (WIDE, WIDE) for part in "qkv"},
    "single_transformer_blocks.0.proj_mlp": (MLP, WIDE),
    "single_transformer_blocks.0.proj_out": (WIDE, WIDE + MLP),
    "single_transformer_blocks.0.norm.linear": (3 * WIDE, WIDE),
}
OUTSIDE = {"x_embedder": (WIDE, 64), "context_embedder": (WIDE, 4096)}


MODELS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "sd": (_sd, StableDiffusionLoraLoaderMixin, "unet"),
    "sdxl": (_sdxl, StableDiffusionXLLoraLoaderMixin, "unet"),
}


def _sizes(model: Any) -> dict[str, tuple[int, ...]]:
    """The linear layers and convolutions of a model."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def _adapter(tmp_path: Path, family: str, sizes: dict[str, tuple[int, ...]]) -> Any:
    """An adapter of random numbers in diffusers' layout, with an alpha that is not the rank."""
    component = "transformer" if family == "flux" else "unet"
    metadata = {
        "lora_adapter_metadata": f'{{"{component}.r": 2, "{component}.lora_alpha": 3}}',
        "ss_base_model_version": {"sd": "sd_v1", "sdxl": "sdxl_base", "flux": "flux1"}[family],
    }
    named = {f"{component}.{name}": size for name, size in sizes.items()}
    return read(saved(tmp_path / "in.safetensors", factors(named), metadata))


def _loaded(family: str, folder: Path) -> Effect:
    """What the file does in diffusers' model, by PEFT's layers."""
    build, mixin, component = MODELS[family]
    model = build().double()
    given = {"unet_config": model.config} if component == "unet" else {}
    found = mixin.lora_state_dict(str(folder / "lora.safetensors"), return_alphas=True, **given)
    state, alphas = found[0], found[1]
    into = getattr(mixin, f"load_lora_into_{component}")
    into(state, network_alphas=alphas, **{component: model}, adapter_name="default")
    effect = Effect()
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A:
            delta = layer.get_delta_weight("default").detach().double()
            effect.added[f"{component}.{name}.weight"] = delta.reshape(len(delta), -1).numpy()
    return effect


@pytest.mark.parametrize("family", MODELS)
def test_diffusers_loads_what_we_write(family: str, tmp_path: Path) -> None:
    """Every linear layer and convolution of the UNet, with the same delta."""
    adapter = _adapter(tmp_path, family, _sizes(MODELS[family][0]()))
    theirs = _loaded(family, converted(adapter, "kohya", tmp_path / "out"))
    ours = effect_of(read(tmp_path / "out" / "lora.safetensors"))
    ours.assert_same(effect_of(adapter), 1e-6)
    ours.assert_same(theirs, 1e-5)


def _answers(state: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """B A x for one x: the products themselves are large."""
    found = {}
    for name, a in state.items():
        module, ending = name.split(".lora_")
        if ending == "A.weight":
            b = state[f"{module}.lora_B.weight"]
            found[module] = b.double().numpy() @ a.double().numpy().sum(axis=1)
    return found


@pytest.mark.parametrize("parts", ["all", "some"])
def test_diffusers_reads_flux_as_it_was(parts: str, tmp_path: Path) -> None:
    """Fused by us, split by diffusers; what has no adapter in a fused module is zeros there."""
    names = (".to_q", ".to_v", ".proj_mlp") if parts == "some" else ("",)
    sizes = {name: size for name, size in FLUX.items() if name.endswith(names)}
    adapter = _adapter(tmp_path, "flux", sizes)
    folder = converted(adapter, "kohya", tmp_path / "out")
    state, _ = FluxLoraLoaderMixin.lora_state_dict(
        str(folder / "lora.safetensors"), return_alphas=True
    )
    theirs = _answers(state)
    for delta in adapter.deltas:
        b, a = (values(delta.roles[role]) for role in ("B", "A"))
        expected = delta.terms.scaling * (b @ a.sum(axis=1))
        error = np.abs(theirs.pop(delta.module) - expected).max()
        assert error <= 1e-5 * np.abs(expected).max(), delta.module
    assert not any(value.any() for value in theirs.values())


def test_diffusers_loses_flux_modules_outside_the_blocks(tmp_path: Path) -> None:
    """Its converter leaves out their component, and its loader then passes over them."""
    adapter = _adapter(tmp_path, "flux", OUTSIDE)
    folder = converted(adapter, "kohya", tmp_path / "out")
    effect_of(read(folder / "lora.safetensors")).assert_same(effect_of(adapter), 1e-6)
    state, _ = FluxLoraLoaderMixin.lora_state_dict(
        str(folder / "lora.safetensors"), return_alphas=True
    )
    assert not any(name.startswith("transformer.") for name in state)


def test_diffusers_drops_dora_scale(tmp_path: Path) -> None:
    """It warns and loads a plain LoRA; here it is DoRA."""
    flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = factors({flat: (WIDTH, WIDTH)}, 2, ("down", "up"))
    tensors[f"{flat}.dora_scale"] = np.ones((WIDTH, 1), np.float32)
    adapter = read(saved(tmp_path / "lora.safetensors", tensors))
    assert [delta.tuner for delta in adapter.deltas] == ["dora"]
    state, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(str(tmp_path / "lora.safetensors"))
    assert not any("dora" in name or "magnitude" in name for name in state)


def test_diffusers_loads_text_encoders_into_transformers_model(tmp_path: Path) -> None:
    """Every projection of CLIP; transformers 5 leaves `text_model` out of its modules' names."""
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = CLIPTextModel(config)
    flats = {
        f"lora_te_text_model_{name.removeprefix('text_model.').replace('.', '_')}": size
        for name, size in _sizes(model).items()
    }
    tensors = factors(flats, 2, ("down", "up"))
    tensors |= {f"{name}.alpha": np.asarray(np.float32(1)) for name in flats}
    path = saved(tmp_path / "lora.safetensors", tensors)
    adapter = read(path)
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(path))
    StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(
        state, alphas, model, prefix="text_encoder", adapter_name="default"
    )
    theirs = Effect()
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            stored = f"text_encoder.text_model.{name.removeprefix('text_model.')}.weight"
            theirs.added[stored] = layer.get_delta_weight("default").detach().double().numpy()
    assert len(theirs.added) == 12
    effect_of(adapter).assert_same(theirs, 1e-5)
    written = tensors_in(converted(adapter, "kohya", tmp_path / "out"))
    assert sorted(written) == sorted(tensors)
    assert all(np.array_equal(written[name], value) for name, value in tensors.items())
