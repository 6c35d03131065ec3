"""Which names ComfyUI looks for in a LoRA file: a map that it makes of the model's own keys.

Facts, of ComfyUI in November 2026: `model_lora_keys_unet` and `model_lora_keys_clip` of
`comfy/lora.py`, the tables of `comfy/utils.py` (`unet_to_diffusers`, `mmdit_to_diffusers`,
`flux_to_diffusers`, `z_image_to_diffusers`), the rewritten files of `comfy/lora_convert.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adaptool.names.diffusion import Family
from adaptool.runtimes.pipeline_names import (
    TEXT_ENCODERS,
    Spelled,
    Spelling,
    denoiser_stems,
    likely,
    spelled,
    stem_of,
)

# Every model has its checkpoint's names, below its own prefix and flattened.
_ALWAYS = frozenset({Spelling.ORIGINAL, Spelling.FLAT})
_OWN = frozenset({Spelling.OWN, Spelling.BARE_OWN})
_FLUX = _OWN | {Spelling.ONETRAINER, Spelling.LYCORIS}
_MORE: Mapping[str, frozenset[Spelling]] = MappingProxyType(
    {
        "sd": _OWN | {Spelling.FLAT_OWN, Spelling.LYCORIS},
        "sdxl": _OWN | {Spelling.FLAT_OWN, Spelling.LYCORIS},
        "sd3": frozenset({Spelling.OWN, Spelling.PEFT, Spelling.ONETRAINER, Spelling.LYCORIS}),
        "flux": _FLUX,
        "flux2": _FLUX,
        "qwen-image": _OWN | {Spelling.BARE, Spelling.TRANSFORMER, Spelling.LYCORIS},
        "z-image": _OWN | {Spelling.PREFIXED, Spelling.LYCORIS},
        "hunyuan-video": frozenset({Spelling.TRANSFORMER}),
    }
)
"""The other spellings in the map of each architecture."""
# Modules of diffusers that are in no table there, by the beginning of their names.
_UNMAPPED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "flux": ("distilled_guidance_layer.",),
        "flux2": ("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation."),
    }
)
# HunyuanVideo's model has other names inside its blocks than the official files, whose names are
# mapped with dots alone.
_RENAMED = re.compile(r"mlp\.fc[12]$|mod(ulation)?\.linear$")
# Files that are rewritten before they are looked up, known by these keys.
BFL_CONTROL = frozenset({"img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale"})
_XLABS = frozenset(
    {
        "single_blocks.37.processor.qkv_lora.up.weight",
        "double_blocks.18.processor.qkv_lora2.up.weight",
    }
)
_WAN_FUN = "lora_unet__blocks_0_cross_attn_k.lora_down.weight"
# CLIP's projections are the only modules of text encoders under diffusers' and kohya's names.
_CLIP_PATH = re.compile(
    r"text_model[._]encoder[._]layers[._]\d+[._]"
    r"(mlp[._]fc[12]|self_attn[._]([kqv]|out)_proj)"
)
_KOHYA_CLIP = re.compile(r"lora_te[12]?_(.+)")
_KOHYA_OTHERS = re.compile(
    r"lora_te[23]_encoder_block_|lora_te_layers_|lora_te[12]_text_projection$"
)
_CLIPS = ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.")


@dataclass(frozen=True, slots=True)
class Looked:
    """The file's keys that ComfyUI finds no place for, and those that the model decides."""

    unread: tuple[str, ...]
    unsure: tuple[str, ...]


def looked_up(names: Collection[str], told: str | None, base: Iterable[str] = ()) -> Looked:
    """What becomes of a file's keys; `told` is the architecture's name where it is known.

    `base` are the names of the model's tensors. Keys whose ending is none of a trainer's are not
    looked at.
    """
    if set(names) >= BFL_CONTROL or set(names) >= _XLABS:
        return Looked((), ())
    stems = denoiser_stems(names)
    found = likely(stems, told)
    model = frozenset(_original(name) for name in base)
    unread: list[str] = []
    unsure: list[str] = []
    for stem, keys in stems.items():
        verdict = _is_read(stem, found, names, model)
        (unsure if verdict is None else unread if not verdict else []).extend(keys)
    unread += _unread_encoders(names)
    return Looked(tuple(unread), tuple(unsure))


def _original(name: str) -> str:
    return name.removeprefix("model.").removeprefix("diffusion_model.").rpartition(".")[0]


def _is_read(
    stem: str, found: tuple[Family, ...], names: Collection[str], base: frozenset[str]
) -> bool | None:
    """Whether the stem is in the map; None where that depends on a model that no table knows."""
    if stem.startswith("lora_unet__") and _WAN_FUN not in names:
        return False
    known = [_maps(family, stem, each) for family in found for each in spelled(stem, family)]
    if known:
        return any(known)
    if stem.startswith(("diffusion_model.", "lora_unet_")):
        return _in_base(stem, base) if base else None
    return None if stem.startswith(("transformer.", "lycoris_")) and not found else False


def _in_base(stem: str, base: frozenset[str]) -> bool:
    if stem.startswith("lora_unet_"):
        flat = stem.removeprefix("lora_unet_")
        return any(name.replace(".", "_") == flat for name in base)
    return stem.removeprefix("diffusion_model.") in base


def _maps(family: Family, stem: str, each: Spelled) -> bool:
    if "processor" in each.original:
        return False  # XLabs' names are read in whole files alone
    if family.name == "hunyuan-video" and each.spelling is Spelling.FLAT:
        return not _RENAMED.search(each.original)
    if each.spelling in _ALWAYS:
        return True
    if each.spelling not in _MORE.get(family.name, frozenset()):
        return False
    if each.module.startswith(_UNMAPPED.get(family.name, ("\0",))):
        return False
    # A U-Net's attention is mapped under its processor's name.
    by_processor = family.component == "unet" and each.spelling in _OWN
    return not by_processor or ".to_" not in stem.replace(".processor.to_", "")


def _unread_encoders(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        stem = stem_of(name)
        if stem is not None and stem.startswith(TEXT_ENCODERS) and not _of_encoder(stem):
            yield name


def _of_encoder(stem: str) -> bool:
    """Whether a text encoder's stem is in the map."""
    if stem.startswith("text_encoders."):
        return not stem.startswith(_CLIPS) or ".transformer.text_" in stem
    for prefix in ("text_encoder.", "text_encoder_2."):
        if stem.startswith(prefix):
            return _CLIP_PATH.fullmatch(stem.removeprefix(prefix)) is not None
    kohya = _KOHYA_CLIP.fullmatch(stem)
    if kohya is not None and _CLIP_PATH.fullmatch(kohya[1]):
        return True
    return _KOHYA_OTHERS.match(stem) is not None
