"""Where diffusers' parameters lie in single-file checkpoints."""

from __future__ import annotations

from adaptool.names.diffusion_checkpoints import DiffusionNames
from adaptool.names.renames import Part, Placement
from adaptool.names.resolver import How, Resolver

FLUX = [
    "double_blocks.0.img_attn.qkv.weight",
    "double_blocks.0.img_attn.norm.query_norm.scale",
    "double_blocks.0.img_mod.lin.weight",
    "single_blocks.0.linear1.weight",
    "single_blocks.0.linear2.weight",
    "final_layer.adaLN_modulation.1.weight",
]


def test_members_of_a_fused_module_are_shares_of_its_rows() -> None:
    """q is the first of seven parts of `linear1`, the MLP the last four."""
    names = DiffusionNames(FLUX)
    block = "transformer.single_transformer_blocks.0"
    assert names.placements(f"{block}.attn.to_q.weight") == (
        Placement(FLUX[3], of_tensor=(Part(0, 0, 7),)),
    )
    assert names.placements(f"{block}.proj_mlp.weight") == (
        Placement(FLUX[3], of_tensor=(Part(0, 3, 7, width=4),)),
    )


def test_prefix_of_whole_checkpoints_is_found() -> None:
    """Checkpoints with text encoders keep the denoiser below `model.diffusion_model.`."""
    prefix = "model.diffusion_model."
    names = DiffusionNames([prefix + name for name in FLUX])
    (found,) = names.placements("transformer_blocks.0.attn.norm_q.weight")
    assert found == Placement(prefix + FLUX[1])


def test_swapped_halves_are_two_pieces() -> None:
    """diffusers' scale is the second half of the checkpoint's norm, its shift the first."""
    first, second = (Part(0, 0, 2),), (Part(0, 1, 2),)
    assert DiffusionNames(FLUX).placements("transformer.norm_out.linear.weight") == (
        Placement(FLUX[5], first, second),
        Placement(FLUX[5], second, first),
    )


def test_diffusers_own_names_and_other_models_are_left_alone() -> None:
    """Nothing is looked up where a base has diffusers' names, or is no diffusion model."""
    parameter = "transformer_blocks.0.attn.to_q.weight"
    assert DiffusionNames([parameter, "proj_out.weight"]).placements(parameter) == ()
    llm = ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]
    assert DiffusionNames(llm).placements(llm[0]) == ()


def test_text_encoder_of_a_whole_checkpoint_is_found() -> None:
    """Stable Diffusion 1 keeps CLIP below `cond_stage_model.transformer.`."""
    module = "text_model.encoder.layers.0.mlp.fc1.weight"
    name = f"cond_stage_model.transformer.{module}"
    assert DiffusionNames([name]).placements(f"text_encoder.{module}") == (Placement(name),)


def test_published_names_come_before_equal_ones_of_another_module() -> None:
    """Wan's `norm2` is diffusers' `norm3`, and the other way round."""
    blocks = ["self_attn.q", "cross_attn.k", "ffn.0", "norm2", "norm3"]
    names = [f"blocks.0.{name}.weight" for name in blocks]
    found = Resolver(names, ()).resolve("transformer.blocks.0.norm2.weight", lambda _: True)
    assert found is not None
    assert found.how is How.RENAME
    assert [placement.tensor for placement in found.placements] == ["blocks.0.norm3.weight"]
