"""ComfyUI's layout and those alike: the checkpoint's names, against diffusers' converters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as judges

from adaptool.errors import InputError
from adaptool.layouts import writable
from adaptool.model.reading import BaseNames, Reading
from adaptool.names.diffusion import families
from exact_numbers import exact_normal
from pipeline_adapters import HEADERS as HEADERS_FOLDER
from pipeline_adapters import (
    Effect,
    Tensors,
    converted,
    effect_of,
    factors,
    product,
    random_file,
    read,
    saved,
    tensors_in,
    values,
)

# A block of each kind at its published width, which diffusers' converters have built in.
MODULES: Mapping[str, dict[str, tuple[int, ...]]] = {
    "flux": {
        "double_blocks.0.img_attn.qkv": (9216, 3072),
        "double_blocks.0.txt_attn.qkv": (9216, 3072),
        "double_blocks.0.img_attn.proj": (3072, 3072),
        "double_blocks.0.img_mlp.0": (12288, 3072),
        "double_blocks.0.txt_mlp.2": (3072, 12288),
        "double_blocks.0.img_mod.lin": (18432, 3072),
        "single_blocks.0.linear1": (21504, 3072),
        "single_blocks.0.linear2": (3072, 15360),
        "single_blocks.0.modulation.lin": (9216, 3072),
    },
    "hunyuan-video": {
        "double_blocks.0.img_attn_qkv": (9216, 3072),
        "double_blocks.0.txt_attn_qkv": (9216, 3072),
        "double_blocks.0.img_attn_proj": (3072, 3072),
        "double_blocks.0.img_mlp.fc1": (12288, 3072),
        "double_blocks.0.img_mod.linear": (18432, 3072),
        "single_blocks.0.linear1": (21504, 3072),
        "single_blocks.0.linear2": (3072, 15360),
    },
    "wan": {
        "blocks.0.self_attn.q": (16, 16),
        "blocks.0.self_attn.o": (16, 16),
        "blocks.0.cross_attn.k": (16, 16),
        "blocks.0.cross_attn.k_img": (16, 16),
        "blocks.0.cross_attn.v_img": (16, 16),
        "blocks.0.ffn.0": (32, 16),
        "blocks.0.ffn.2": (16, 32),
    },
    "qwen-image": {
        "transformer_blocks.0.attn.to_q": (16, 16),
        "transformer_blocks.0.attn.add_k_proj": (16, 16),
        "transformer_blocks.0.img_mlp.net.0.proj": (32, 16),
        "transformer_blocks.0.txt_mod.1": (96, 16),
    },
    "z-image": {
        "layers.0.attention.qkv": (48, 16),
        "layers.0.attention.out": (16, 16),
        "layers.0.feed_forward.w1": (32, 16),
        "noise_refiner.0.attention.qkv": (48, 16),
    },
    "flux2": {
        "double_blocks.0.img_attn.qkv": (48, 16),
        "double_blocks.0.img_mlp.0": (96, 16),
        "single_blocks.0.linear1": (144, 16),
        "single_blocks.0.linear2": (16, 64),
    },
}
MODULES = {
    **MODULES,
    "sd": {
        "input_blocks.1.1.proj_in": (16, 16, 1, 1),
        "input_blocks.11.0.in_layers.2": (16, 16, 3, 3),
        "middle_block.1.transformer_blocks.0.attn2.to_k": (16, 24),
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj": (128, 16),
        "output_blocks.2.1.conv": (16, 16, 3, 3),
    },
    "sdxl": {
        "input_blocks.7.1.transformer_blocks.9.attn1.to_q": (16, 16),
        "input_blocks.8.1.proj_in": (16, 16),
        "output_blocks.2.2.conv": (16, 16, 3, 3),
        "output_blocks.0.1.transformer_blocks.3.ff.net.2": (16, 64),
        "label_emb.0.2": (16, 16),
    },
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": (48, 16),
        "joint_blocks.0.context_block.attn.qkv": (48, 16),
        "joint_blocks.1.context_block.adaLN_modulation.1": (32, 16),
        "joint_blocks.0.x_block.mlp.fc1": (64, 16),
        "final_layer.linear": (64, 16),
    },
    "lumina2": {
        "layers.0.attention.qkv": (60, 36),
        "layers.0.feed_forward.w3": (64, 36),
        "noise_refiner.0.adaLN_modulation.1": (64, 36),
    },
}
Judge = Callable[[dict[str, Any]], dict[str, torch.Tensor]]
JUDGES: Mapping[str, Judge] = {
    "hunyuan-video": judges._convert_hunyuan_video_lora_to_diffusers,  # noqa: SLF001
    "flux2": judges._convert_non_diffusers_flux2_lora_to_diffusers,  # noqa: SLF001
    "flux": judges._convert_kohya_flux_lora_to_diffusers,  # noqa: SLF001
    "wan": judges._convert_non_diffusers_wan_lora_to_diffusers,  # noqa: SLF001
    "qwen-image": judges._convert_non_diffusers_qwen_lora_to_diffusers,  # noqa: SLF001
}

# Converters that take factors under PEFT's names only, without an alpha.
NO_ALPHA = {"hunyuan-video", "flux2"}


def _comfy(family: str, alpha: float | None = None, *, whole: bool = False) -> Tensors:
    ends = ("A", "B") if alpha is None else ("down", "up")
    modules = {
        f"diffusion_model.{name}": tuple(
            size // 64 if size >= 3072 and not whole else size for size in sizes
        )
        for name, sizes in MODULES[family].items()
    }
    tensors = factors(modules, 2, ends)
    if alpha is not None:
        tensors |= {f"{name}.alpha": np.asarray(alpha, np.float32) for name in modules}
    return tensors


def _products(found: Mapping[str, torch.Tensor]) -> Effect:
    """The deltas of diffusers' state dict: there the scale is in the factors."""
    ends = (".lora_A.weight", ".lora_B.weight")
    modules = {key.removesuffix(ends[0]) for key in found if key.endswith(ends[0])}
    numbers = {key: value.double().numpy() for key, value in found.items()}
    products = {
        f"{name}.weight": product(numbers[name + ends[1]], numbers[name + ends[0]])
        for name in modules
    }
    return Effect(products)


@pytest.mark.parametrize("family", JUDGES)
def test_deltas_are_those_of_diffusers_own_converter(tmp_path: Path, family: str) -> None:
    """Every module of diffusers gets the product that diffusers' converter gives it."""
    alpha = None if family in NO_ALPHA else 1.0
    tensors = _comfy(family, alpha, whole=True)
    adapter = read(saved(tmp_path / "comfy.safetensors", tensors))
    assert adapter.layout == "comfyui"
    found = JUDGES[family]({name: torch.from_numpy(value) for name, value in tensors.items()})
    placed = {
        f"transformer.{name.removeprefix('transformer.')}": value for name, value in found.items()
    }
    effect_of(adapter).assert_same(_products(placed), 1e-6)


@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("family", MODULES)
def test_file_comes_back_bit_by_bit_through_diffusers(
    tmp_path: Path, family: str, alpha: float | None
) -> None:
    """ComfyUI to diffusers and back: fused factors are the file's own bytes again."""
    tensors = _comfy(family, alpha=alpha)
    adapter = read(saved(tmp_path / "comfy.safetensors", tensors))
    between = read(converted(adapter, "diffusers", tmp_path / "diffusers"), _base(family))
    effect_of(between).assert_same(effect_of(adapter))
    again = tensors_in(converted(between, "comfyui", tmp_path / "again"))
    assert sorted(again) == sorted(tensors)
    for name, value in tensors.items():
        assert again[name].tobytes() == value.tobytes(), name


def _base(family: str) -> Reading:
    """The base's names tell models apart whose blocks have the same names in diffusers."""
    names = {f"{name}.weight": size for name, size in MODULES[family].items()}
    return Reading(base=BaseNames(names, None))


def test_block_diagonal_factors_split_to_their_own_ranks(tmp_path: Path) -> None:
    """q, k and v trained apart and stored fused have a third of the fused rank each."""
    h, r = 12, 2
    rng = np.random.default_rng(0)
    parts = [exact_normal(rng, h, r).astype(np.float32) for _ in "qkv"]
    b = np.zeros((3 * h, 3 * r), np.float32)
    for place, part in enumerate(parts):
        b[place * h : (place + 1) * h, place * r : (place + 1) * r] = part
    a = exact_normal(rng, 3 * r, h).astype(np.float32)
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    adapter = read(saved(tmp_path / "sparse.safetensors", tensors))
    assert [delta.terms.rank for delta in adapter.deltas] == [r, r, r]
    assert [delta.roles["A"].shape for delta in adapter.deltas] == [(r, h)] * 3
    again = tensors_in(converted(adapter, "comfyui", tmp_path / "again"))
    for name, value in tensors.items():
        assert np.array_equal(again[name], value)


def test_missing_part_of_a_fused_module_stays_without_effect(tmp_path: Path) -> None:
    """A LoRA on q and v only: the rows of k are zeros in the fused module."""
    names = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qv"]
    path = saved(tmp_path / "qv.safetensors", factors(dict.fromkeys(names, (8, 8))))
    adapter = read(path, _base("flux"))
    ours = converted(adapter, "comfyui", tmp_path / "comfy")
    (b,) = (value for name, value in tensors_in(ours).items() if ".lora_B." in name)
    assert b.shape == (24, 4)
    assert not b[8:16].any()
    found = effect_of(read(ours)).added
    for name, value in effect_of(adapter).added.items():
        assert np.array_equal(found[name], value)


def test_swapped_halves_are_swapped_back(tmp_path: Path) -> None:
    """The final norm has shift before scale in the checkpoint, scale before shift in diffusers."""
    name = "diffusion_model.final_layer.adaLN_modulation.1"
    tensors = factors({name: (8, 4), "diffusion_model.double_blocks.0.img_mod.lin": (24, 4)})
    adapter = read(saved(tmp_path / "final.safetensors", tensors))
    b = tensors[f"{name}.lora_B.weight"]
    product = effect_of(adapter).added["transformer.norm_out.linear.weight"]
    swapped = np.concatenate([b[4:], b[:4]]).astype(np.float64)
    assert np.array_equal(product, swapped @ tensors[f"{name}.lora_A.weight"].astype(np.float64))
    again = tensors_in(converted(adapter, "comfyui", tmp_path / "again"))
    assert np.array_equal(again[f"{name}.lora_B.weight"], b)


def test_sd3_swaps_the_norm_of_the_last_text_stream_only(tmp_path: Path) -> None:
    """With two outputs for an input it is a final norm, with six a block's modulation."""
    stem = "diffusion_model.joint_blocks.{}.context_block.adaLN_modulation.1"
    tensors = factors({stem.format(0): (24, 4), stem.format(1): (8, 4)})
    adapter = read(saved(tmp_path / "sd3.safetensors", tensors))
    found = effect_of(adapter).added
    for block, halves in ((0, False), (1, True)):
        a = tensors[f"{stem.format(block)}.lora_A.weight"].astype(np.float64)
        b = tensors[f"{stem.format(block)}.lora_B.weight"].astype(np.float64)
        expected = np.concatenate([b[4:], b[:4]]) if halves else b
        name = f"transformer.transformer_blocks.{block}.norm1_context.linear.weight"
        assert np.array_equal(found[name], expected @ a)


def test_bias_differences_are_not_scaled_by_alpha(tmp_path: Path) -> None:
    """`diff_b` is added as it is; PEFT's bias of lora_B is scaled, so it is divided on the way."""
    name = "diffusion_model.blocks.0.self_attn.q"
    tensors = factors({name: (8, 8)}, 2, ("down", "up"))
    tensors[f"{name}.alpha"] = np.asarray(1.0, np.float32)
    tensors[f"{name}.diff_b"] = np.arange(8, dtype=np.float32)
    adapter = read(saved(tmp_path / "wan.safetensors", tensors))
    parameter = "transformer.blocks.0.attn1.to_q.bias"
    assert np.array_equal(effect_of(adapter).shifted[parameter], np.arange(8.0))
    between = read(converted(adapter, "diffusers", tmp_path / "diffusers"))
    effect_of(between).assert_same(effect_of(adapter))
    again = tensors_in(converted(between, "comfyui", tmp_path / "again"))
    assert np.array_equal(again[f"{name}.diff_b"], tensors[f"{name}.diff_b"])


def test_peft_gets_bias_differences_it_can_scale_and_no_others(tmp_path: Path) -> None:
    """PEFT scales a bias of lora_B like its factors, and reads it where lora_bias says so."""
    name = "diffusion_model.blocks.0.self_attn.q"
    tensors = factors({name: (8, 8)}, 2, ("down", "up"))
    tensors[f"{name}.alpha"] = np.asarray(1.0, np.float32)
    tensors[f"{name}.diff_b"] = np.arange(8, dtype=np.float32)
    adapter = read(saved(tmp_path / "wan.safetensors", tensors))
    ours = read(converted(adapter, "peft", tmp_path / "peft"))
    assert ours.config["lora_bias"] is True
    shifted = effect_of(ours).shifted
    assert np.array_equal(shifted["blocks.0.attn1.to_q.bias"], np.arange(8.0))
    alone = {"diffusion_model.blocks.0.norm3.diff": np.ones(8, np.float32), **tensors}
    (loss,) = writable()["peft"].losses(read(saved(tmp_path / "norm.safetensors", alone)))
    assert loss.tensors == ("diffusion_model.blocks.0.norm3.diff",)


def test_lokr_of_a_fused_module_is_split_by_its_blocks(tmp_path: Path) -> None:
    """ai-toolkit writes LoKr under the checkpoint's names: kron(w1, w2), rows of w1 for q, k, v."""
    rng = np.random.default_rng(0)
    w1 = exact_normal(rng, 6, 2).astype(np.float32)
    w2 = exact_normal(rng, 4, 4).astype(np.float32)
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2}
    adapter = read(saved(tmp_path / "lokr.safetensors", tensors))
    assert [delta.tuner for delta in adapter.deltas] == ["lokr"] * 3
    whole = np.kron(w1.astype(np.float64), w2.astype(np.float64))
    for place, delta in enumerate(adapter.deltas):
        left = values(delta.roles["w1"])
        part = delta.terms.scaling * np.kron(left, values(delta.roles["w2"]))
        assert np.array_equal(part, whole[8 * place : 8 * place + 8])
    (loss,) = writable()["comfyui"].losses(adapter)
    assert "lokr" in loss.why


HEADERS = ("flux_aitoolkit", "flux_diffusers", "flux_xlabs", "flux_control")


@pytest.mark.parametrize("header", HEADERS)
def test_real_names_and_shapes_are_all_claimed_and_come_back(tmp_path: Path, header: str) -> None:
    """A file with the names of a real one is read whole; in every layout it means the same."""
    path = random_file(tmp_path / "real.safetensors", header)
    adapter = read(path)
    used = {ref.name for delta in adapter.deltas for ref in delta.roles.values()}
    assert adapter.dropped == ()
    assert used | {item.value.name for item in adapter.replaced} == set(tensors_in(tmp_path))
    for layout in ("comfyui", "diffusers", "peft"):
        if writable()[layout].losses(adapter):
            assert header == "flux_control"  # it brings norms whole, which only PEFT has slots for
            assert layout != "peft"
            continue
        again = read(converted(adapter, layout, tmp_path / layout))
        if layout != "peft":
            effect_of(again).assert_same(effect_of(adapter))


def test_xlabs_is_what_diffusers_converts_it_to(tmp_path: Path) -> None:
    """Processors' factors, fused over q, k and v, without an alpha."""
    names = {
        "double_blocks.0.processor.qkv_lora1": (24, 8),
        "double_blocks.0.processor.qkv_lora2": (24, 8),
        "double_blocks.0.processor.proj_lora1": (8, 8),
        "double_blocks.0.processor.proj_lora2": (8, 8),
        "single_blocks.0.processor.qkv_lora": (24, 8),
        "single_blocks.0.processor.proj_lora": (8, 40),
    }
    rng = np.random.default_rng(2)
    tensors = {}
    for name, (out, inner) in names.items():
        tensors[f"{name}.down.weight"] = exact_normal(rng, 2, inner).astype(np.float32)
        tensors[f"{name}.up.weight"] = exact_normal(rng, out, 2).astype(np.float32)
    adapter = read(saved(tmp_path / "xlabs.safetensors", tensors))
    judged = judges._convert_xlabs_flux_lora_to_diffusers(  # noqa: SLF001
        {name: torch.from_numpy(value) for name, value in tensors.items()}
    )
    effect_of(adapter).assert_same(_products(judged))


def _control() -> Tensors:
    """The names of a real control adapter, all modules of FLUX.1 at their widths, rank 2."""
    facts = json.loads((HEADERS_FOLDER / "flux_control.json").read_text())["tensors"]
    rng = np.random.default_rng(5)
    found = {}
    for name, sizes in facts.items():
        shape = list(sizes)
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            shape[".lora_B." in name] = 2
        found[name] = exact_normal(rng, *shape).astype(np.float32)
    return found


def test_control_adapter_is_what_diffusers_converts_it_to(tmp_path: Path) -> None:
    """Black Forest Labs' control files: factors, biases of lora_B, and norms brought whole."""
    tensors = _control()
    adapter = read(saved(tmp_path / "control.safetensors", tensors))
    assert adapter.layout == "bfl"
    found = effect_of(adapter)
    judged = judges._convert_bfl_flux_control_lora_to_diffusers(  # noqa: SLF001
        {name: torch.from_numpy(value) for name, value in tensors.items()}
    )
    # Its converter swaps the halves of the final norm in lora_A as well, which are no halves of
    # outputs there but of the rank: undone before it judges.
    name = "transformer.norm_out.linear.lora_A.weight"
    judged[name] = judged[name].flip(0)
    expected = _products(judged)
    for key, value in judged.items():
        if key.endswith(".lora_B.bias"):
            shift = value.double().numpy()
            expected.shifted[key.replace(".lora_B.", ".")] = shift
        elif not key.endswith((".lora_A.weight", ".lora_B.weight")):
            expected.replaced[key] = value.double().numpy()
    found.assert_same(expected, 1e-6)


def test_diffusers_names_below_comfys_prefix_are_kept(tmp_path: Path) -> None:
    """Trainers write `diffusion_model.` before diffusers' names as well."""
    name = "diffusion_model.single_transformer_blocks.0.proj_mlp"
    adapter = read(saved(tmp_path / "mixed.safetensors", factors({name: (32, 8)})))
    assert [d.module for d in adapter.deltas] == [
        "transformer.single_transformer_blocks.0.proj_mlp"
    ]


def test_member_of_a_fused_module_stored_apart_is_found(tmp_path: Path) -> None:
    """OneTrainer numbers the members: `linear1.3` is the MLP's part."""
    names = {
        "transformer.double_blocks.0.img_attn.qkv.0": (8, 8),
        "transformer.double_blocks.0.img_attn.qkv.2": (8, 8),
        "transformer.single_blocks.0.linear1.3": (32, 8),
        "transformer.double_blocks.0.img_attn.proj": (8, 8),
    }
    adapter = read(saved(tmp_path / "apart.safetensors", factors(names)))
    assert {delta.module.removeprefix("transformer.") for delta in adapter.deltas} == {
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.0.attn.to_out.0",
        "single_transformer_blocks.0.proj_mlp",
    }


def test_module_of_no_known_model_keeps_its_name_and_is_said(tmp_path: Path) -> None:
    """A model without a table is read by its own names; only ComfyUI's layout can hold it."""
    name = "diffusion_model.some_blocks.0.mixer"
    adapter = read(saved(tmp_path / "new.safetensors", factors({name: (8, 8)})))
    assert [delta.module for delta in adapter.deltas] == ["transformer.some_blocks.0.mixer"]
    assert "kept as they are" in adapter.findings[-1].message
    again = tensors_in(converted(adapter, "comfyui", tmp_path / "again"))
    assert f"{name}.lora_A.weight" in again


def test_one_unknown_module_of_a_known_model_is_refused(tmp_path: Path) -> None:
    """A name that the architecture does not have is an error with the name."""
    names = {f"diffusion_model.{name}": size for name, size in MODULES["wan"].items()}
    tensors = factors({**names, "diffusion_model.blocks.0.self_attn.gate": (8, 8)})
    with pytest.raises(InputError, match="wan") as caught:
        read(saved(tmp_path / "odd.safetensors", tensors))
    assert caught.value.tensor is not None
    assert "self_attn.gate" in caught.value.tensor


def test_text_encoders_are_named_as_the_model_orders_them(tmp_path: Path) -> None:
    """Flux's second text encoder is T5, SDXL's is CLIP-G."""
    clip, t5 = "text_model.encoder.layers.0.mlp.fc1", "encoder.block.0.layer.0.SelfAttention.q"
    names = {
        "diffusion_model.double_blocks.0.img_attn.proj": (8, 8),
        f"text_encoders.clip_l.transformer.{clip}": (16, 8),
        f"text_encoders.t5xxl.transformer.{t5}": (8, 8),
    }
    tensors = factors(names)
    adapter = read(saved(tmp_path / "flux.safetensors", tensors))
    assert [delta.module for delta in adapter.deltas] == [
        "transformer.transformer_blocks.0.attn.to_out.0",
        f"text_encoder.{clip}",
        f"text_encoder_2.{t5}",
    ]
    again = tensors_in(converted(adapter, "comfyui", tmp_path / "again"))
    assert {name: value.tobytes() for name, value in again.items()} == {
        name: value.tobytes() for name, value in tensors.items()
    }


def test_onetrainers_file_is_read_by_diffusers_flattened_names(tmp_path: Path) -> None:
    """All 2024 keys of a real DoRA file: both text encoders and the transformer."""
    adapter = read(random_file(tmp_path / "dora.safetensors", "flux_dora_onetrainer"))
    assert adapter.layout == "onetrainer"
    components = {delta.module.partition(".")[0] for delta in adapter.deltas}
    assert components == {"transformer", "text_encoder", "text_encoder_2"}
    assert {delta.terms.scaling for delta in adapter.deltas} == {3 / 4}
    family = families()["flux"]
    for delta in adapter.deltas:
        component, _, path = delta.module.partition(".")
        assert component != "transformer" or family.by_module(path)
        assert delta.roles["magnitude"].shape == (delta.terms.inner,)


MUSUBI = {
    "lora_unet_blocks_0_self_attn_q": "transformer.blocks.0.attn1.to_q",
    "lora_unet__blocks_0_ffn_0": "transformer.blocks.0.ffn.net.0.proj",
    "Hunyuan_video_I2V_lora_double_blocks_0_img_attn_proj": (
        "transformer.transformer_blocks.0.attn.to_out.0"
    ),
    "lora_unet_double_blocks_0_img_mlp_fc1": "transformer.transformer_blocks.0.ff.net.0.proj",
    "lora_unet_layers_0_attention_to_q": "transformer.layers.0.attention.to_q",
    "lora_unet_transformer_blocks_0_img_mod_1": "transformer.transformer_blocks.0.img_mod.1",
}


@pytest.mark.parametrize("name", MUSUBI)
def test_musubis_names_are_kohyas_of_the_video_models(tmp_path: Path, name: str) -> None:
    """musubi-tuner flattens Wan, HunyuanVideo, Z-Image and Qwen-Image, with alphas."""
    tensors = factors({name: (8, 8)}, 2, ("down", "up"))
    tensors[f"{name}.alpha"] = np.asarray(1.0, np.float32)
    (delta,) = read(saved(tmp_path / "musubi.safetensors", tensors)).deltas
    assert delta.module == MUSUBI[name]
    assert delta.terms.scaling == 1 / 2
