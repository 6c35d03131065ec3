"""Where transformers' CLIP modules lie in OpenCLIP's, as Stable Diffusion 2 and SDXL store one.

OpenCLIP's blocks have q, k and v in one `attn.in_proj_weight`, and a projection that is stored
(in, out) under a name of its own. Source: the published checkpoints, and diffusers 0.42.1's
`convert_open_clip_checkpoint`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from adaptool.names.renames import Part, Placement
from adaptool.names.templates import Table, filled

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("cond_stage_model.model.", "conditioner.embedders.0.model."),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
"""Component -> what stands before its modules in a checkpoint of the whole pipeline."""

_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_BLOCK = "transformer.resblocks.#"
_TEXT = "text_model.encoder.layers.#"


@functools.cache
def _table() -> Table[str]:
    named = {f"{_TEXT}.{here}": f"{_BLOCK}.{there}" for here, there in _LAYER.items()}
    named["text_model.final_layer_norm"] = "ln_final"
    named["text_model.embeddings.token_embedding"] = "token_embedding"
    return Table(named.items())


@functools.cache
def _fused() -> Table[int]:
    return Table((f"{_TEXT}.{name}", place) for place, name in enumerate(_FUSED))


def placement(parameter: str) -> Placement | None:
    """The tensor of a parameter of transformers' CLIP, without prefix; None where it has none."""
    path, _, leaf = parameter.rpartition(".")
    if parameter == "text_projection.weight":
        return Placement("text_projection", transposed=True)
    fused = _fused().find(path)
    if fused is not None:
        place, numbers = fused
        tensor = f"{filled(_BLOCK, numbers)}.attn.in_proj_{leaf}"
        return Placement(tensor, of_tensor=(Part(0, place, len(_FUSED)),))
    found = _table().find(path)
    return None if found is None else Placement(f"{filled(*found)}.{leaf}")
