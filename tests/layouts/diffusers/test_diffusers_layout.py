"""diffusers' layout against diffusers: what it saves we read, what we write it loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from diffusers.loaders import FluxLoraLoaderMixin
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from adaptool.errors import InputError
from adaptool.layouts import diffusers, writable
from adaptool.store.adapter_files import open_adapter
from exact_numbers import exact_normal
from pipeline_adapters import (
    Effect,
    converted,
    effect_of,
    factors,
    random_file,
    read,
    saved,
    tensors_in,
)
from pipeline_models import ATTENTION, MODELS, trained, with_component

FILE = {"weight_name": "pytorch_lora_weights.safetensors", "use_safetensors": True}


def _delta(layer: LoraLayer, adapter: str) -> np.ndarray[Any, Any]:
    """The product at its scale, as PEFT computes it, folded to a matrix."""
    delta = layer.get_delta_weight(adapter).detach().double()
    return delta.reshape(len(delta), -1).numpy()


def _effect(model: Any, prefix: str, adapter: str = "default") -> Effect:
    """What a loaded adapter does, as PEFT's layers tell."""
    found = Effect()
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        found.added[f"{prefix}.{name}.weight"] = _delta(layer, adapter)
        if adapter in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[adapter].weight.detach().double()
            found.magnitudes[f"{prefix}.{name}.weight"] = magnitude.numpy().reshape(-1)
        bias = layer.lora_B[adapter].bias
        if bias is not None:
            shift = bias.detach().double().numpy() * layer.scaling[adapter]
            found.shifted[f"{prefix}.{name}.bias"] = shift
    return found


def _loaded(build: Callable[[], Any], folder: Path, prefix: str) -> Effect:
    """The adapter in a directory, loaded by diffusers into a fresh model."""
    model = build().double()
    model.load_lora_adapter(folder, prefix=prefix, adapter_name="default", **FILE)
    return _effect(model, prefix)


CONFIGS = {
    "plain": LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION),
    "alpha": LoraConfig(r=4, lora_alpha=1, target_modules=ATTENTION),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=ATTENTION),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=[*ATTENTION, "ff.net.0.proj"],
        rank_pattern={"to_q": 2},
        alpha_pattern={"to_k": 5},
    ),
    "dora": LoraConfig(r=4, lora_alpha=1, use_dora=True, target_modules=ATTENTION),
    "bias": LoraConfig(r=4, lora_alpha=1, lora_bias=True, target_modules=["to_out.0"]),
}


# PEFT takes the bias of a lora_B for an incomplete factor.
@pytest.mark.filterwarnings("ignore:.*have invalid shape")
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("family", MODELS)
def test_what_diffusers_loads_of_our_file_is_what_it_saved(
    tmp_path: Path, family: str, kind: str
) -> None:
    """Read what diffusers saved, write it, load it with diffusers: the same in its own layers."""
    build, component = MODELS[family]
    model = trained(build, CONFIGS[kind], tmp_path / "saved")
    expected = _effect(model.double(), component)
    adapter = read(with_component(tmp_path / "saved", component))
    effect_of(adapter).assert_same(expected, 1e-6)
    ours = converted(adapter, "diffusers", tmp_path / "ours")
    _loaded(build, ours, component).assert_same(expected, 1e-6)


def test_convolutions_of_a_unet_come_through(tmp_path: Path) -> None:
    """3 x 3 kernels: the same delta in diffusers' layers, before and after."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["conv1", "conv_in", "proj_in"])
    model = trained(MODELS["sd"][0], config, tmp_path / "saved")
    expected = _effect(model.double(), "unet")
    adapter = read(with_component(tmp_path / "saved", "unet"))
    effect_of(adapter).assert_same(expected, 1e-6)
    ours = converted(adapter, "diffusers", tmp_path / "ours")
    _loaded(MODELS["sd"][0], ours, "unet").assert_same(expected, 1e-6)


def test_baked_scale_needs_no_metadata(tmp_path: Path) -> None:
    """With the scale in the factors alpha is the rank, which readers take without a word."""
    build, component = MODELS["flux"]
    model = trained(build, CONFIGS["patterns"], tmp_path / "saved")
    adapter = read(with_component(tmp_path / "saved", component))
    ours = converted(adapter, "diffusers", tmp_path / "ours", bake=True)
    with open_adapter(ours) as files:
        assert "lora_adapter_metadata" not in files.header.metadata
    _loaded(build, ours, component).assert_same(_effect(model.double(), component), 1e-6)


OLD = {
    "unet": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.{}",
    "text": "text_encoder.text_model.encoder.layers.0.self_attn.{}",
}


def test_old_attention_processors_are_read_as_diffusers_converts_them(tmp_path: Path) -> None:
    """`...attn1.processor.to_out_lora.down.weight` is `...attn1.to_out.0`."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    rng = np.random.default_rng(1)
    tensors = {}
    for name in ("to_q", "to_k", "to_v", "to_out"):
        stem = OLD["unet"].format(f"processor.{name}_lora")
        tensors[f"{stem}.down.weight"] = exact_normal(rng, 2, 16).astype(np.float32)
        tensors[f"{stem}.up.weight"] = exact_normal(rng, 16, 2).astype(np.float32)
    adapter = read(saved(tmp_path / "old.safetensors", tensors))
    expected = convert_unet_state_dict_to_peft(dict(tensors))
    modules = {f"unet.{key.partition('.lora_')[0]}" for key in expected}
    assert {delta.module for delta in adapter.deltas} == modules
    for delta in adapter.deltas:
        a = expected[f"{delta.module.removeprefix('unet.')}.lora_A.weight"]
        b = expected[f"{delta.module.removeprefix('unet.')}.lora_B.weight"]
        product = b.astype(np.float64) @ a.astype(np.float64)
        assert np.array_equal(effect_of(adapter).added[delta.parameter], product)


def test_old_text_encoders_are_read_as_diffusers_converts_them(tmp_path: Path) -> None:
    """`self_attn.to_q_lora` and `q_proj.lora_linear_layer` are both `self_attn.q_proj`."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft

    modules = {}
    for name, ending in (("to_{}_lora", ""), ("{}_proj.lora_linear_layer", "")):
        keys = [OLD["text"].format(name.format(letter) + ending) for letter in ("q", "k", "v")]
        tensors = {
            f"{key}.{way}.weight": np.ones(shape, np.float32)
            for key in keys
            for way, shape in (("down", (2, 16)), ("up", (16, 2)))
        }
        out = OLD["text"].format("to_out_lora" if "to_" in name else "out_proj.lora_linear_layer")
        tensors[f"{out}.down.weight"] = np.ones((2, 16), np.float32)
        tensors[f"{out}.up.weight"] = np.ones((16, 2), np.float32)
        adapter = read(saved(tmp_path / "old.safetensors", tensors))
        found = {delta.module for delta in adapter.deltas}
        expected = convert_state_dict_to_peft(tensors)
        assert found == {key.partition(".lora_")[0] for key in expected}
        modules[name] = found
    first, second = modules.values()
    assert first == second


def test_components_of_a_pipeline_keep_their_own_scales(tmp_path: Path) -> None:
    """Two components, two LoRA configs packed into one object."""
    modules = {
        "unet.mid_block.attentions.0.proj_in": (8, 8),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (16, 8),
    }
    packed = {"unet.r": 2, "unet.lora_alpha": 4, "text_encoder.r": 2, "text_encoder.lora_alpha": 1}
    path = saved(
        tmp_path / "two.safetensors",
        factors(modules),
        {"lora_adapter_metadata": json.dumps(packed)},
    )
    adapter = read(path)
    assert [delta.terms.scaling for delta in adapter.deltas] == [0.5, 2.0]
    again = read(converted(adapter, "diffusers", tmp_path / "again"))
    effect_of(again).assert_same(effect_of(adapter))


def test_pipeline_loads_both_components(tmp_path: Path) -> None:
    """StableDiffusionPipeline takes the state dict and metadata of our file as its own."""
    modules = {
        "unet.mid_block.attentions.0.proj_in": (8, 8, 1, 1),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (16, 8),
    }
    tensors = factors(modules)
    adapter = read(saved(tmp_path / "two.safetensors", tensors))
    ours = converted(adapter, "diffusers", tmp_path / "ours")
    found, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        ours, return_lora_metadata=True
    )
    assert alphas is None
    assert sorted(found) == sorted(tensors)
    assert metadata["unet.lora_alpha"] == metadata["unet.r"] == 2


def test_factors_are_copied_bit_by_bit(tmp_path: Path) -> None:
    """What needs no computing has the bytes it had."""
    path = random_file(tmp_path / "flux.safetensors", "flux_diffusers")
    again = converted(read(path), "diffusers", tmp_path / "again")
    for name, value in tensors_in(tmp_path).items():
        assert tensors_in(again)[name].tobytes() == value.tobytes()


def test_unknown_key_is_listed(tmp_path: Path) -> None:
    """A tensor that is no factor is refused by name, with the layout that read the others."""
    tensors = factors({"unet.mid_block.attentions.0.proj_in": (8, 8)})
    tensors["unet.mid_block.something"] = np.ones(3, np.float32)
    with pytest.raises(InputError, match=r"1 of 3 keys.*unet\.mid_block\.something"):
        read(saved(tmp_path / "odd.safetensors", tensors))


def test_missing_factor_is_named(tmp_path: Path) -> None:
    """A down without its up is an error that names the module."""
    tensors = factors({"unet.mid_block.attentions.0.proj_in": (8, 8)})
    del tensors["unet.mid_block.attentions.0.proj_in.lora_B.weight"]
    with pytest.raises(InputError) as caught:
        read(saved(tmp_path / "half.safetensors", tensors))
    assert caught.value.tensor is not None
    assert "proj_in" in caught.value.tensor


def test_language_models_transformer_is_not_a_pipelines(tmp_path: Path) -> None:
    """GPT-2's own modules begin with `transformer.h.`, which no diffusion pipeline has."""
    path = saved(tmp_path / "gpt2.safetensors", factors({"transformer.h.0.attn.c_attn": (24, 8)}))
    with open_adapter(path) as files:
        assert diffusers.sniff(files).claimed == 0


def test_dora_scale_that_diffusers_drops_is_kept(tmp_path: Path) -> None:
    """F6: diffusers 0.42 warns and loads such a file as plain LoRA; here the magnitude stays."""
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = factors({name: (8, 8)})
    tensors[f"{name}.dora_scale"] = np.arange(1, 9, dtype=np.float32)[:, None]
    path = saved(tmp_path / "dora.safetensors", tensors)
    found = FluxLoraLoaderMixin.lora_state_dict(path)
    assert not any("magnitude" in key for key in found)
    adapter = read(path)
    assert [delta.tuner for delta in adapter.deltas] == ["dora"]
    ours = converted(adapter, "diffusers", tmp_path / "ours")
    assert f"{name}.lora_magnitude_vector" in FluxLoraLoaderMixin.lora_state_dict(ours)


def test_magnitude_of_inputs_is_refused_by_name(tmp_path: Path) -> None:
    """F13: OneTrainer's DoRA has norms over outputs, which PEFT's cannot hold."""
    path = random_file(tmp_path / "onetrainer.safetensors", "flux_dora_onetrainer")
    adapter = read(path)
    assert {delta.tuner for delta in adapter.deltas} == {"dora_input"}
    (loss,) = writable()["diffusers"].losses(adapter)
    assert "norms over inputs" in loss.why
    assert len(loss.tensors) == 3 * len(adapter.deltas)
