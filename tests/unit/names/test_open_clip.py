"""OpenCLIP's names against diffusers' own converter of such checkpoints."""

from __future__ import annotations

import torch
from diffusers.loaders import single_file_utils as loaders
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from adaptool.names import open_clip, text_encoders

WIDTH, PREFIX = 8, "conditioner.embedders.1.model."
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 6,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def test_rows_lie_where_diffusers_converter_puts_them() -> None:
    """Every parameter that has a place is, in the checkpoint, where the converter looks for it."""
    config = CLIPTextConfig(**SIZES)
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    torch.manual_seed(0)
    wanted = {
        name if name.startswith("text_") else f"text_model.{name}": torch.randn(value.shape)
        for name, value in model.state_dict().items()
        if "position" not in name
    }
    checkpoint: dict[str, torch.Tensor] = {
        f"{PREFIX}positional_embedding": torch.randn(77, WIDTH),
        f"{PREFIX}logit_scale": torch.zeros(()),
    }
    placed = {}
    for name, value in wanted.items():
        place = open_clip.placement(name)
        assert place is not None, name
        assert text_encoders.knows(name.rpartition(".")[0]), name
        placed[name] = value
        if place.of_tensor:
            (part,) = place.of_tensor
            shape = (part.count * value.shape[0], *value.shape[1:])
            whole = checkpoint.setdefault(PREFIX + place.tensor, torch.zeros(shape))
            whole.view(part.count, *value.shape)[part.index] = value
        else:
            checkpoint[PREFIX + place.tensor] = value.T if place.transposed else value
    found = loaders.convert_open_clip_checkpoint(model, checkpoint, prefix=PREFIX)
    named = {
        name if name.startswith("text_") else f"text_model.{name}": v for name, v in found.items()
    }
    for name, value in placed.items():
        assert torch.equal(named[name], value), name
