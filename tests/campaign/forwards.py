"""What the small models are asked, and what they answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def inputs_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the model's forward takes, always the same."""
    random = torch.Generator().manual_seed(5)
    config: Any = model.config
    kind = type(model).__name__
    ids = torch.randint(3, 58, (2, 9), generator=random)
    more: dict[str, torch.Tensor] = {}
    if kind.endswith("ForCTC"):
        return {"input_values": torch.randn(2, 200, generator=random)}
    if kind.startswith("Whisper"):
        sound = torch.randn(2, 8, 32, generator=random)
        return {"input_features": sound, "decoder_input_ids": ids[:, :5]}
    if kind.endswith("ForImageClassification"):
        small = any(part in kind for part in ("ConvNext", "ResNet", "Segformer"))
        size = 16 if small else config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size, generator=random)}
    if kind in ("CLIPModel", "SiglipModel", "ChineseCLIPModel"):
        return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 8, 8, generator=random)}
    if kind == "Siglip2Model":
        more = {
            "pixel_values": torch.randn(2, 4, 48, generator=random),
            "pixel_attention_mask": torch.ones(2, 4, dtype=torch.long),
            "spatial_shapes": torch.tensor([[2, 2], [2, 2]]),
        }
    if getattr(config, "is_encoder_decoder", False):
        more = {"decoder_input_ids": torch.randint(3, 58, (2, 5), generator=random)}
    return {"input_ids": ids, **more}


_OUTPUTS = ("logits", "last_hidden_state", "text_embeds", "image_embeds", "logits_per_text")


@torch.inference_mode()
def answer(model: Any) -> torch.Tensor:
    """Everything that the model answers to `inputs_of`, as one float64 vector."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    found = model(**inputs_of(base))
    parts = [getattr(found, key, None) for key in _OUTPUTS]
    tensors = [part.double().flatten() for part in parts if isinstance(part, torch.Tensor)]
    return torch.cat(tensors)
