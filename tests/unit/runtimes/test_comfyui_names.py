"""Which names ComfyUI's map of a model has: cases from public files and from its own tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adaptool import api
from adaptool.runtimes.comfyui_names import looked_up

UNET = "mid_block.attentions.0.transformer_blocks.0"
READ = [
    # Every model: its own names with dots, and flattened.
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight",
    # U-Nets: diffusers' names flattened, and with their processors.
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    f"unet.{UNET}.attn1.processor.to_q_lora.down.weight",
    f"{UNET}.attn1.processor.to_out_lora.up.weight",
    f"unet.{UNET}.ff.net.2.lora.down.weight",
    # Flux, SD3, Qwen-Image and Z-Image: diffusers' names.
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight",
    "transformer.transformer_blocks.0.attn2.to_q.lora_A.weight",
    "transformer_blocks.0.img_mlp.net.2.lora_A.weight",
    "diffusion_model.layers.0.attention.to_q.lora_A.weight",
    "lycoris_layers_0_attention_to_q.lokr_w1",
    # HunyuanVideo under the official files' names.
    "transformer.single_blocks.0.modulation.linear.lora_A.weight",
    # Text encoders.
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_A.weight",
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
]
UNREAD = [
    f"unet.{UNET}.attn1.to_q.lora.down.weight",
    f"unet.{UNET}.attn1.to_q.lora_A.weight",
    "transformer.blocks.0.attn1.to_q.lora_A.weight",  # Wan
    "double_blocks.0.img_attn.qkv.lora_A.weight",
    "double_blocks.0.processor.qkv_lora1.down.weight",
    "transformer.single_stream_modulation.linear.lora_A.weight",  # Flux.2
    "lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight",  # HunyuanVideo
    "diffusion_model.transformer_blocks.0.attn.add_q_proj.lora_down.weight",
    "lora_unet__blocks_0_self_attn_q.lora_down.weight",
    "transformer.layers.0.attn.to_q.lora_A.weight",  # Lumina 2
    "text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "text_encoders.clip_l.transformer.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
]
TOLD = {
    "transformer.transformer_blocks.0.attn2.to_q.lora_A.weight": "sd3",
    "diffusion_model.transformer_blocks.0.attn.add_q_proj.lora_down.weight": "flux",
}


@pytest.mark.parametrize("name", READ)
def test_name_is_in_the_map(name: str) -> None:
    """Nothing is said of it."""
    found = looked_up([name], TOLD.get(name))
    assert (found.unread, found.unsure) == ((), ())


@pytest.mark.parametrize("name", UNREAD)
def test_name_is_in_no_map(name: str) -> None:
    """ComfyUI logs it and goes on without it."""
    assert looked_up([name], TOLD.get(name)).unread == (name,)


def test_whole_xlabs_files_and_wan_funs_are_rewritten_first() -> None:
    """Each is known by two keys of its last blocks, or by one of the first."""
    ends = ["single_blocks.37.processor.qkv_lora", "double_blocks.18.processor.qkv_lora2"]
    names = [f"{end}.{part}.weight" for end in ends for part in ("up", "down")]
    assert looked_up(names, None).unread == ()
    wan = [f"lora_unet__blocks_0_cross_attn_{part}.lora_down.weight" for part in "kv"]
    assert looked_up(wan, None).unread == ()


def test_module_of_no_table_is_looked_for_in_the_base() -> None:
    """Without a base nobody knows; with one its names decide."""
    name = "diffusion_model.tomorrow.0.mlp.lora_A.weight"
    assert looked_up([name], None).unsure == (name,)
    assert looked_up([name], None, ["model.diffusion_model.tomorrow.0.mlp.weight"]).unsure == ()
    assert looked_up([name], None, ["diffusion_model.yesterday.0.mlp.weight"]).unread == (name,)


@pytest.mark.parametrize(
    ("names", "target", "expected"),
    [
        # cloneofsimo, loralib, LitGPT and bare pairs are read by neither.
        (("unet:0:up", "unet:0:down"), "comfyui", "target-ignored"),
        (("unet:0:up", "unet:0:down"), "diffusers", "target-ignored"),
        (("model.q.lora_A", "model.q.lora_B"), "comfyui", "target-ignored"),
        (("transformer.h.0.attn.proj.lora_A", "transformer.h.0.attn.proj.lora_B"), "diffusers", ""),
        (("a.A.weight", "a.B.weight"), "comfyui", "target-ignored"),
        (("a.A.weight", "a.B.weight"), "diffusers", "target-ignored"),
    ],
)
def test_files_of_other_trainers_are_read_by_neither(
    names: tuple[str, str], target: str, expected: str, tmp_path: Path
) -> None:
    """The finding is an error: the program would go on without a word."""
    shapes = {
        name: (8, 2) if name.endswith(("up", "lora_B", ".B.weight")) else (2, 8) for name in names
    }
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"unet": '["CrossAttention"]'})
    found = api.validate(tmp_path / "a.safetensors", target=target, scale=(1.0,))
    codes = {str(each.code) for each in found.findings if each.severity == "error"}
    assert (expected or "target-ignored") in codes, found.findings


def test_dora_is_mis_scaled_where_its_magnitudes_are_of_outputs(tmp_path: Path) -> None:
    """One number for each input is divided by the right norm; one for each output is not."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {
        f"{stem}.lora_down.weight": np.ones((2, 8), np.float32),
        f"{stem}.lora_up.weight": np.ones((8, 2), np.float32),
    }
    for shape, expected in (((8, 1), ["target-mis-scaled"]), ((1, 8), [])):
        path = tmp_path / f"{shape[0]}.safetensors"
        save_file(factors | {f"{stem}.dora_scale": np.ones(shape, np.float32)}, path)
        found = api.validate(path, target="comfyui").findings
        assert [each.code for each in found if each.severity == "error"] == expected
