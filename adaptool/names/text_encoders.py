"""Module paths of the text encoders in diffusion pipelines, found by their flattened names.

Sources: transformers' CLIPTextModel(WithProjection), T5EncoderModel, and the decoders Gemma2Model
and Qwen3Model, whose `model.` some trainers keep and others leave out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from adaptool.names.templates import Table, filled

_CLIP_LAYER = """
layer_norm1 layer_norm2 mlp.fc1 mlp.fc2
self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj
"""
_CLIP = """
text_model.embeddings.token_embedding text_model.embeddings.position_embedding
text_model.final_layer_norm text_projection
"""
_T5_LAYER = """
layer_norm SelfAttention.q SelfAttention.k SelfAttention.v SelfAttention.o
SelfAttention.relative_attention_bias
DenseReluDense.wi DenseReluDense.wi_0 DenseReluDense.wi_1 DenseReluDense.wo
"""
_T5 = "shared encoder.embed_tokens encoder.final_layer_norm"
_DECODER_LAYER = """
self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj self_attn.q_norm
self_attn.k_norm mlp.gate_proj mlp.up_proj mlp.down_proj input_layernorm post_attention_layernorm
"""
_STACKS = ("layers", "model.layers", "language_model.layers", "model.language_model.layers")


def _templates() -> Iterator[tuple[str, str]]:
    """Every path that is written, and the one it stands for."""
    clip = [*_CLIP.split(), *(f"text_model.encoder.layers.#.{n}" for n in _CLIP_LAYER.split())]
    for name in clip:
        yield name, name
        # transformers 5 has no `text_model` in CLIPTextModel; its files still have.
        yield name.removeprefix("text_model."), name
    for name in _T5.split():
        yield name, name
    for name in _T5_LAYER.split():
        yield (path := f"encoder.block.#.layer.#.{name}"), path
    for stack in _STACKS:
        for name in _DECODER_LAYER.split():
            yield (path := f"{stack}.#.{name}"), path


@functools.cache
def _table(*, flat: bool) -> Table[str]:
    return Table(_templates(), flat=flat)


def path_of(flat: str) -> str | None:
    """The module path that is `flat` with `_` for every dot; None for no text encoder's."""
    found = _table(flat=True).find(flat)
    return None if found is None else filled(*found)


def stored_path(path: str) -> str | None:
    """The path as checkpoints have it; None for no text encoder's."""
    found = _table(flat=False).find(path)
    return None if found is None else filled(*found)


def knows(path: str) -> bool:
    """Whether a text encoder has a module of this path."""
    return stored_path(path) is not None


def kind_of(path: str) -> str:
    """`clip`, `t5` or `decoder`: what kind of text encoder has this module; "" for none."""
    found = _table(flat=False).find(path)
    if found is None:
        return ""
    if found[0].startswith(("text_model.", "text_projection")):
        return "clip"
    return "t5" if found[0] == "shared" or found[0].startswith("encoder.") else "decoder"


def comfyui_path(path: str) -> str:
    """The path as ComfyUI's text encoders have it: CLIP's below `text_model.`, decoders' `model.`.

    What is no module of a text encoder known here stays as it is.
    """
    stored = stored_path(path) or path
    stack = next((each for each in _STACKS if stored.startswith(f"{each}.")), None)
    return stored if stack is None else f"model.layers.{stored.removeprefix(f'{stack}.')}"
