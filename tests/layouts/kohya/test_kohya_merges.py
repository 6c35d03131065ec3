"""kohya's files merged into the bases that people have: a component, or a whole checkpoint.

The truth is written out in float64: W + alpha / r * up down on the rows that the file is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptool import api
from adaptool.errors import MismatchError
from adaptool.findings import Code
from exact_numbers import exact_normal
from pipeline_adapters import Tensors, factors, saved

FILE = "lora.safetensors"
WIDTH = 8
CLIP = "text_model_encoder_layers_0"
# Flattened name in the file -> (tensor of an SDXL checkpoint, rows of it, kernel).
SDXL: dict[str, tuple[str, slice, tuple[int, ...]]] = {
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": (
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn1.to_q.weight",
        slice(None),
        (),
    ),
    "lora_unet_output_blocks_2_2_conv": (
        "model.diffusion_model.output_blocks.2.2.conv.weight",
        slice(None),
        (3, 3),
    ),
    f"lora_te1_{CLIP}_self_attn_q_proj": (
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        slice(None),
        (),
    ),
    f"lora_te2_{CLIP}_self_attn_k_proj": (
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        slice(WIDTH, 2 * WIDTH),
        (),
    ),
    f"lora_te2_{CLIP}_self_attn_out_proj": (
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.out_proj.weight",
        slice(None),
        (),
    ),
    f"lora_te2_{CLIP}_mlp_fc1": (
        "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight",
        slice(None),
        (),
    ),
}


def _adapter(kernels: dict[str, tuple[int, ...]]) -> Tensors:
    sizes = {name: (WIDTH, WIDTH, *kernel) for name, kernel in kernels.items()}
    tensors = factors(sizes, 2, ("down", "up"))
    return tensors | {f"{name}.alpha": np.asarray(np.float32(3)) for name in kernels}


def _delta(tensors: Tensors, name: str) -> np.ndarray[Any, Any]:
    up, down = (tensors[f"{name}.lora_{end}.weight"].astype("f8") for end in ("up", "down"))
    shape = (len(up), *down.shape[1:])
    return 1.5 * (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(shape)


def _base(shapes: dict[str, tuple[int, ...]], path: Path) -> Tensors:
    rng = np.random.default_rng(8)
    tensors = {name: exact_normal(rng, *s).astype(np.float32) for name, s in shapes.items()}
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return tensors


def _merged(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_sdxl_file_merges_into_the_one_file_of_the_pipeline(tmp_path: Path) -> None:
    """UNet, CLIP and OpenCLIP, whose q, k and v are one tensor, at once."""
    shapes = {
        tensor: (WIDTH if rows == slice(None) else 3 * WIDTH, WIDTH, *kernel)
        for tensor, rows, kernel in SDXL.values()
    }
    before = _base(
        {**shapes, "first_stage_model.x": (2, 2)}, tmp_path / "base" / "sdxl.safetensors"
    )
    tensors = _adapter({name: kernel for name, (_, _, kernel) in SDXL.items()})
    saved(tmp_path / FILE, tensors)
    api.merge(tmp_path / "base", tmp_path / FILE, tmp_path / "out")
    after = _merged(tmp_path / "out")
    expected = {name: value.astype("f8") for name, value in before.items()}
    for name, (tensor, rows, _) in SDXL.items():
        expected[tensor][rows] += _delta(tensors, name)
    assert sorted(after) == sorted(expected)
    for name, value in expected.items():
        assert np.array_equal(after[name], value.astype(np.float32)), name


@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_fused_flux_file_merges_into_either_naming(names: str, tmp_path: Path) -> None:
    """The checkpoint has qkv in one tensor, diffusers in three."""
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = factors({flat: (3 * WIDTH, WIDTH)}, 2, ("down", "up"))
    tensors[f"{flat}.alpha"] = np.asarray(np.float32(3))
    saved(tmp_path / FILE, tensors)
    parts = [f"transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"]
    whole = "double_blocks.0.img_attn.qkv.weight"
    shapes = (
        {whole: (3 * WIDTH, WIDTH)} if names == "original" else dict.fromkeys(parts, (WIDTH, WIDTH))
    )
    before = _base(shapes, tmp_path / "base" / "model.safetensors")
    api.merge(tmp_path / "base", tmp_path / FILE, tmp_path / "out")
    after = _merged(tmp_path / "out")
    order = [whole] if names == "original" else parts
    old, new = (np.concatenate([each[name] for name in order]) for each in (before, after))
    assert np.array_equal(new, (old.astype("f8") + _delta(tensors, flat)).astype(np.float32))


def test_other_components_are_named_unless_they_may_be_skipped(tmp_path: Path) -> None:
    """A file for UNet and text encoder on the UNet alone: nothing is lost unsaid."""
    unet, encoder = "lora_unet_mid_block_resnets_0_conv1", f"lora_te_{CLIP}_mlp_fc1"
    tensors = _adapter({unet: (3, 3), encoder: ()})
    saved(tmp_path / FILE, tensors)
    name = "mid_block.resnets.0.conv1.weight"
    before = _base({name: (WIDTH, WIDTH, 3, 3)}, tmp_path / "unet" / "model.safetensors")
    with pytest.raises(MismatchError) as caught:
        api.merge(tmp_path / "unet", tmp_path / FILE, tmp_path / "out")
    assert caught.value.code is Code.MODULE_NOT_IN_BASE
    api.merge(tmp_path / "unet", tmp_path / FILE, tmp_path / "out", skip_unmatched=True)
    found = _merged(tmp_path / "out")[name]
    assert np.array_equal(found, (before[name] + _delta(tensors, unet)).astype(np.float32))


def test_second_encoder_does_not_merge_into_the_first(tmp_path: Path) -> None:
    """Both have the same names; the sizes tell them apart."""
    flat = f"lora_te2_{CLIP}_mlp_fc1"
    saved(tmp_path / FILE, factors({flat: (WIDTH, WIDTH)}, 2, ("down", "up")))
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    _base({name: (WIDTH, 2 * WIDTH)}, tmp_path / "te" / "model.safetensors")
    with pytest.raises(MismatchError) as caught:
        api.merge(tmp_path / "te", tmp_path / FILE, tmp_path / "out")
    assert caught.value.code is Code.MODULE_NOT_IN_BASE
