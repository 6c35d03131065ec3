"""What diffusers names the tensors of its denoisers, with small sizes.

Written by hand: diffusers is not installed where the tests run, so nothing generates these. The
names follow `models/unets/unet_2d_condition.py`, `models/transformers/transformer_flux.py` and
`transformer_sd3.py`; only SD3's outer structure was checked against that source line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Component:
    """A model of a pipeline: its class, the folder it lies in, its config, its tensors' shapes.

    `targets` are the modules that diffusers' training scripts train.
    """

    kind: str
    folder: str
    source: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    targets: tuple[str, ...]


def _linear(name: str, inner: int, out: int, *, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, inner)
    if bias:
        yield f"{name}.bias", (out,)


def _conv(name: str, inner: int, out: int, size: int = 3) -> Shapes:
    yield f"{name}.weight", (out, inner, size, size)
    yield f"{name}.bias", (out,)


def _norm(name: str, size: int) -> Shapes:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


# --- UNet2DConditionModel: Stable Diffusion 1, 2 and XL ------------------------------------------

CHANNELS, TIME, TEXT = (32, 64), 128, 24


def _attention(name: str, dim: int, context: int) -> Shapes:
    yield from _linear(f"{name}.to_q", dim, dim, bias=False)
    yield from _linear(f"{name}.to_k", context, dim, bias=False)
    yield from _linear(f"{name}.to_v", context, dim, bias=False)
    yield from _linear(f"{name}.to_out.0", dim, dim)


def _unet_transformer(name: str, dim: int, *, linear: bool) -> Shapes:
    """`use_linear_projection`: XL and 2 project with linear layers, 1 with 1x1 convolutions."""
    yield from _norm(f"{name}.norm", dim)
    for end in ("proj_in", "proj_out"):
        project = _linear if linear else _conv
        yield from project(f"{name}.{end}", dim, dim, **({} if linear else {"size": 1}))
    block = f"{name}.transformer_blocks.0"
    for norm in ("norm1", "norm2", "norm3"):
        yield from _norm(f"{block}.{norm}", dim)
    yield from _attention(f"{block}.attn1", dim, dim)
    yield from _attention(f"{block}.attn2", dim, TEXT)
    yield from _linear(f"{block}.ff.net.0.proj", dim, 8 * dim)
    yield from _linear(f"{block}.ff.net.2", 4 * dim, dim)


def _resnet(name: str, inner: int, out: int) -> Shapes:
    yield from _norm(f"{name}.norm1", inner)
    yield from _conv(f"{name}.conv1", inner, out)
    yield from _linear(f"{name}.time_emb_proj", TIME, out)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if inner != out:
        yield from _conv(f"{name}.conv_shortcut", inner, out, 1)


def _unet(*, linear: bool) -> Shapes:
    low, high = CHANNELS
    yield from _conv("conv_in", 4, low)
    yield from _linear("time_embedding.linear_1", low, TIME)
    yield from _linear("time_embedding.linear_2", TIME, TIME)
    yield from _resnet("down_blocks.0.resnets.0", low, low)
    yield from _unet_transformer("down_blocks.0.attentions.0", low, linear=linear)
    yield from _conv("down_blocks.0.downsamplers.0.conv", low, low)
    yield from _resnet("down_blocks.1.resnets.0", low, high)
    yield from _resnet("mid_block.resnets.0", high, high)
    yield from _unet_transformer("mid_block.attentions.0", high, linear=linear)
    yield from _resnet("mid_block.resnets.1", high, high)
    yield from _resnet("up_blocks.0.resnets.0", 2 * high, high)
    yield from _resnet("up_blocks.0.resnets.1", high + low, high)
    yield from _conv("up_blocks.0.upsamplers.0.conv", high, high)
    yield from _resnet("up_blocks.1.resnets.0", high + low, low)
    yield from _unet_transformer("up_blocks.1.attentions.0", low, linear=linear)
    yield from _resnet("up_blocks.1.resnets.1", 2 * low, low)
    yield from _unet_transformer("up_blocks.1.attentions.1", low, linear=linear)
    yield from _norm("conv_norm_out", low)
    yield from _conv("conv_out", low, 4)


# --- Flux and Stable Diffusion 3 -----------------------------------------------------------------

DIM, HEAD = 32, 8


def _embedder(name: str, inner: int) -> Shapes:
    yield from _linear(f"{name}.linear_1", inner, DIM)
    yield from _linear(f"{name}.linear_2", DIM, DIM)


def _joint_attention(name: str, *, last: bool = False) -> Shapes:
    for side in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0"):
        yield from _linear(f"{name}.{side}", DIM, DIM)
    if not last:
        yield from _linear(f"{name}.to_add_out", DIM, DIM)


def _feed_forward(name: str) -> Shapes:
    yield from _linear(f"{name}.net.0.proj", DIM, 4 * DIM)
    yield from _linear(f"{name}.net.2", 4 * DIM, DIM)


def _flux() -> Shapes:
    yield from _embedder("time_text_embed.timestep_embedder", 256)
    yield from _embedder("time_text_embed.guidance_embedder", 256)
    yield from _embedder("time_text_embed.text_embedder", 24)
    yield from _linear("context_embedder", 40, DIM)
    yield from _linear("x_embedder", 16, DIM)
    for block in (f"transformer_blocks.{number}" for number in range(2)):
        yield from _linear(f"{block}.norm1.linear", DIM, 6 * DIM)
        yield from _linear(f"{block}.norm1_context.linear", DIM, 6 * DIM)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            yield f"{block}.attn.{norm}.weight", (HEAD,)
        yield from _joint_attention(f"{block}.attn")
        yield from _feed_forward(f"{block}.ff")
        yield from _feed_forward(f"{block}.ff_context")
    for block in (f"single_transformer_blocks.{number}" for number in range(2)):
        yield from _linear(f"{block}.norm.linear", DIM, 3 * DIM)
        yield from _linear(f"{block}.proj_mlp", DIM, 4 * DIM)
        yield from _linear(f"{block}.proj_out", 5 * DIM, DIM)
        for norm in ("norm_q", "norm_k"):
            yield f"{block}.attn.{norm}.weight", (HEAD,)
        for side in ("to_q", "to_k", "to_v"):
            yield from _linear(f"{block}.attn.{side}", DIM, DIM)
    yield from _linear("norm_out.linear", DIM, 2 * DIM)
    yield from _linear("proj_out", DIM, 16)


def _sd3() -> Shapes:
    yield "pos_embed.pos_embed", (1, 16, DIM)
    yield from _conv("pos_embed.proj", 4, DIM, 2)
    yield from _embedder("time_text_embed.timestep_embedder", 256)
    yield from _embedder("time_text_embed.text_embedder", 24)
    yield from _linear("context_embedder", 40, DIM)
    for number in range(2):
        block, last = f"transformer_blocks.{number}", number == 1
        yield from _linear(f"{block}.norm1.linear", DIM, 6 * DIM)
        yield from _linear(f"{block}.norm1_context.linear", DIM, (2 if last else 6) * DIM)
        yield from _joint_attention(f"{block}.attn", last=last)
        yield from _feed_forward(f"{block}.ff")
        if not last:
            yield from _feed_forward(f"{block}.ff_context")
    yield from _linear("norm_out.linear", DIM, 2 * DIM)
    yield from _linear("proj_out", DIM, 16)


_UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj")
_MORE = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj")
_JOINT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
_UNET = "models/unets/unet_2d_condition.py"

COMPONENTS: Mapping[str, Component] = {
    "unet": Component(
        "UNet2DConditionModel",
        "unet",
        _UNET,
        {"cross_attention_dim": TEXT, "use_linear_projection": False},
        dict(_unet(linear=False)),
        (*_UNET_TARGETS, *_MORE),
    ),
    "unet_xl": Component(
        "UNet2DConditionModel",
        "unet",
        _UNET,
        {"cross_attention_dim": TEXT, "use_linear_projection": True},
        dict(_unet(linear=True)),
        _UNET_TARGETS,
    ),
    "flux": Component(
        "FluxTransformer2DModel",
        "transformer",
        "models/transformers/transformer_flux.py",
        {"attention_head_dim": HEAD, "num_attention_heads": DIM // HEAD, "guidance_embeds": True},
        dict(_flux()),
        (*_JOINT_TARGETS, "to_add_out", "ff.net.0.proj", "ff.net.2", "proj_mlp", "x_embedder"),
    ),
    "sd3": Component(
        "SD3Transformer2DModel",
        "transformer",
        "models/transformers/transformer_sd3.py",
        {"attention_head_dim": HEAD, "num_attention_heads": DIM // HEAD},
        dict(_sd3()),
        _JOINT_TARGETS,
    ),
}
