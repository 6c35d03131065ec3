"""What is written for diffusers, ComfyUI and sd-scripts is read so by the models of their readers.

The readers share no code with the encoders: a file that a reader would read otherwise is refused
before it is written, whichever of the two is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptool.errors import InternalError
from adaptool.layouts import writable
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Destination, Encoded, Written, in_safetensors
from adaptool.names.diffusion import families
from adaptool.readers import check
from pipeline_adapters import factors, random_file, read, saved
from pipeline_tables import base_of, fused_size, seats_of

LAYOUTS = ("comfyui", "diffusers", "kohya")
HEADERS = (
    "anima_kohya",
    "flux_aitoolkit",
    "flux_diffusers",
    "flux_dora_onetrainer",
    "flux_kohya_with_te1",
    "flux_xlabs",
)


def _checked(adapter: Adapter, layout: str, *, bake: bool = False) -> bool:
    """Whether the layout holds it; an error where its reader reads it otherwise."""
    if writable()[layout].losses(adapter):
        return False
    encoded = writable()[layout].encode(adapter, Destination(bake=bake))
    check(adapter, layout, encoded, None)
    return True


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("header", HEADERS)
def test_files_of_real_names_are_read_as_they_were_meant(
    header: str, layout: str, tmp_path: Path
) -> None:
    """Every delta, its shape and its scale; text encoders as well."""
    adapter = read(random_file(tmp_path / "real.safetensors", header))
    # OneTrainer's norms over outputs have no place in diffusers, nor in fused modules.
    assert _checked(adapter, layout) or header == "flux_dora_onetrainer"


@pytest.mark.parametrize("name", families())
def test_all_modules_of_a_model_are_read_as_they_were_meant(name: str, tmp_path: Path) -> None:
    """Under the checkpoint's names and diffusers', with scales of their own, and baked."""
    family = families()[name]
    named = {f"diffusion_model.{seat.original}": fused_size(seat) for seat in seats_of(family)}
    named = dict(list(named.items())[:: len(named) // 40 or 1])
    tensors = factors(named, 2, ("down", "up"))
    tensors |= {
        f"{stem}.alpha": np.asarray(np.float32(1 + place % 3)) for place, stem in enumerate(named)
    }
    adapter = read(saved(tmp_path / "a.safetensors", tensors), base_of(family))
    for layout in LAYOUTS:
        for bake in (False, True):
            assert _checked(adapter, layout, bake=bake)


ENCODERS = {
    "text_encoder.encoder.layers.0.mlp.fc1": (3072, 768),
    "text_encoder.text_model.encoder.layers.1.mlp.fc1": (3072, 768),
    "text_encoder_2.text_model.encoder.layers.1.mlp.fc1": (5120, 1280),
    "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": (640, 640),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_encoders_under_either_name_are_read(layout: str, tmp_path: Path) -> None:
    """transformers 5 has no `text_model` in CLIP; ComfyUI's and kohya's names have."""
    assert _checked(read(saved(tmp_path / "a.safetensors", factors(ENCODERS))), layout)


Spoil = Callable[[Written], Written | None]
SPOILT: dict[str, Spoil] = {
    "a name": lambda each: replace(each, name=each.name.replace("attn", "attm")),
    "a tensor": lambda each: None if ".lora_up" in each.name or ".lora_B" in each.name else each,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spoil", SPOILT)
def test_spoilt_file_is_not_written(spoil: str, layout: str, tmp_path: Path) -> None:
    """A name that no program has, a factor that is missing: a bug of ours, told before writing."""
    adapter = read(random_file(tmp_path / "real.safetensors", "flux_kohya"))
    encoded = writable()[layout].encode(adapter, Destination())
    spoilt = _spoilt(encoded, SPOILT[spoil])
    check(adapter, layout, encoded, None)
    with pytest.raises(InternalError):
        check(adapter, layout, spoilt, None)


def _spoilt(encoded: Encoded, spoil: Spoil) -> Encoded:
    at = next(i for i, each in enumerate(encoded.tensors) if spoil(each) != each)
    changed = spoil(encoded.tensors[at])
    tensors = [*encoded.tensors[:at], *([changed] if changed else []), *encoded.tensors[at + 1 :]]
    return in_safetensors(encoded.file, tensors, {"format": "pt"})
