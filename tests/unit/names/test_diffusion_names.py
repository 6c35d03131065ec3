"""The tables of diffusion models' names against diffusers' own single-file loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as loaders

from adaptool.names.diffusion import Family, Seat, families

Checkpoint = dict[str, torch.Tensor]
# The sizes that diffusers' loaders have built in: inputs of a block, and of a fused module.
_WIDTH = {"flux": 3072, "hunyuan-video": 3072, "lumina2": 2304}
_LOADERS: Mapping[str, Callable[..., Checkpoint]] = {
    "flux": loaders.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": loaders.convert_flux2_transformer_checkpoint_to_diffusers,
    "sd3": loaders.convert_sd3_transformer_checkpoint_to_diffusers,
    "z-image": loaders.convert_z_image_transformer_checkpoint_to_diffusers,
    "lumina2": loaders.convert_lumina2_to_diffusers,
    "wan": loaders.convert_wan_transformer_to_diffusers,
    "hunyuan-video": loaders.convert_hunyuan_video_transformer_to_diffusers,
}
# Modules without a bias, for which the loaders have no rule.
_WEIGHT_ONLY = ("norm", "ln_q", "ln_k", "attention.qkv")
_ELSEWHERE = ("distilled_guidance_layer", "processor")


def _seats(family: Family) -> Iterator[Seat]:
    """Every line of the table, in block 0 and, where it has one, in block 1."""
    for rule in family.rules:
        if any(word in rule.original for word in _ELSEWHERE):
            continue
        for number in "01" if "#" in rule.original else "0":
            seat = family.by_original(rule.original.replace("#", number))
            assert seat is not None
            yield seat


def _sizes(family: Family, seat: Seat) -> tuple[int, int]:
    """(out, in): six parts of the input for a modulation that is no pair."""
    width = _WIDTH.get(family.name, 12)
    if seat.rule.pair_only:
        last = seat.original.startswith("joint_blocks.1.")
        return (2 if last else 6) * width, width
    return sum(seat.rule.shares) * (width // seat.rule.shares[0]), width


@pytest.mark.parametrize("name", _LOADERS)
def test_rows_lie_where_the_single_file_loader_puts_them(name: str) -> None:
    """A checkpoint with a number of its own in every row comes out as the table says."""
    family = families()[name]
    checkpoint, expected = {}, {}
    for count, seat in enumerate(_seats(family)):
        out, inner = _sizes(family, seat)
        # SD3's last block has no text stream beside its norm and attention's inputs.
        if name == "sd3" and _absent_in_sd3(seat.original):
            continue
        leaves = ("scale",) if seat.rule.scale else ("weight", "bias")
        for leaf in leaves[:1] if any(w in seat.original for w in _WEIGHT_ONLY) else leaves:
            values = torch.arange(out)[:, None].float() + 100_000 * count
            checkpoint[f"{seat.original}.{leaf}"] = values
            for module, rows in zip(seat.modules, seat.rows(out, inner), strict=True):
                part = torch.cat([values[start:stop] for start, stop in rows])
                expected[f"{module}.{seat.leaf(leaf)}"] = part
    if name == "flux2":  # its loader leaves the bias of a module that has none where it is
        del checkpoint["final_layer.adaLN_modulation.1.bias"], expected["norm_out.linear.bias"]
    if name == "sd3":
        checkpoint["pos_embed"] = torch.zeros(1)
    found = _LOADERS[name](dict(checkpoint))
    found.pop("pos_embed.pos_embed", None)
    assert sorted(found) == sorted(expected)
    for parameter, rows in expected.items():
        assert torch.equal(found[parameter], rows), parameter


def _absent_in_sd3(original: str) -> bool:
    return (original.startswith("joint_blocks.1.context_block.") and ".attn.proj" in original) or (
        original.startswith("joint_blocks.1.context_block.mlp")
    )


_UNETS: Mapping[str, dict[str, Any]] = {
    "sd": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "transformer_layers_per_block": 1,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32,
    },
}


@pytest.mark.parametrize("name", _UNETS)
def test_unet_is_named_as_the_single_file_loader_has_it(name: str) -> None:
    """diffusers loads a UNet's checkpoint under our names, and finds each tensor in its place."""
    from diffusers import UNet2DConditionModel

    family = families()[name]
    layers = len(_UNETS[name]["down_block_types"])
    with torch.device("meta"):
        model = UNet2DConditionModel(
            block_out_channels=(32,) * layers, cross_attention_dim=8, **_UNETS[name]
        )
    checkpoint, expected = {}, {}
    for count, parameter in enumerate(model.state_dict()):
        module, _, leaf = parameter.rpartition(".")
        seat = family.by_module(module)
        assert seat is not None, parameter
        checkpoint[f"model.diffusion_model.{seat.original}.{leaf}"] = torch.tensor(count)
        expected[parameter] = count
    config = {"layers_per_block": 2, **_UNETS[name]}
    found = loaders.convert_ldm_unet_checkpoint(checkpoint, config)
    assert {key: int(value) for key, value in found.items()} == expected


@pytest.mark.parametrize("name", families())
def test_names_come_back_from_either_side_and_flattened(name: str) -> None:
    """Dotted or flattened, from the checkpoint's side or from diffusers', the seat is the same."""
    family = families()[name]
    for rule in family.rules:
        seat = family.by_original(rule.original.replace("#", "3"))
        assert seat is not None
        assert family.by_flat_original(seat.original.replace(".", "_")) == seat
        for module in seat.modules:
            assert family.by_flat_module(module.replace(".", "_")) == module
            found = family.by_module(module)
            assert found is not None
            assert module in found.modules
