"""Which names diffusers' pipelines convert, by architecture.

Facts, of diffusers 0.42.1, `loaders/lora_pipeline.py` and `loaders/lora_conversion_utils.py`, found
by giving each pipeline's `lora_state_dict` the modules of its model one by one and block by block
(`tests/unit/runtimes/test_diffusers_reads.py` does so again). Where a pipeline has no converter for
a spelling, it leaves the keys alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Converts:
    """What becomes of the modules of an architecture in one spelling.

    `lost` and `refused` are expressions on the checkpoint's names. `blocks` names what must be
    there of a block as soon as anything of it is.
    """

    lost: str = r"(?!)"
    refused: str = r"(?!)"
    blocks: tuple[str, ...] = ()


_ALL = Converts()
_NONE = Converts(lost="")
_REFUSED = Converts(refused="")
_OUTSIDE_FLUX = Converts(
    lost=r"(final_layer|img_in|txt_in|time_in|vector_in|guidance_in|distilled_guidance_layer)\b"
)
_OUTSIDE_WAN = r"(patch|text|time)_embedding|time_projection|img_emb|head"
_OF_LUMINA2 = ("attention.qkv", "attention.out", *(f"feed_forward.w{n}" for n in (1, 2, 3)))
# The endings of factors count where a converter looks for the one kind alone.
DOWN_UP, A_B = "lora_down", "lora_A"
Kind = tuple[str, Spelling, str]
CONVERTS: Mapping[Kind, Converts] = MappingProxyType(
    {
        ("sd", Spelling.FLAT_OWN, DOWN_UP): Converts(lost=r"label_emb"),
        ("sd", Spelling.FLAT, DOWN_UP): _ALL,
        ("sdxl", Spelling.FLAT_OWN, DOWN_UP): Converts(lost=r"label_emb"),
        ("sdxl", Spelling.FLAT, DOWN_UP): _ALL,
        ("flux", Spelling.ORIGINAL, DOWN_UP): _OUTSIDE_FLUX,
        ("flux", Spelling.FLAT, DOWN_UP): _OUTSIDE_FLUX,
        ("flux", Spelling.FLAT_OWN, DOWN_UP): _REFUSED,
        ("flux", Spelling.PREFIXED, DOWN_UP): _REFUSED,
        ("flux", Spelling.ONETRAINER, DOWN_UP): Converts(
            lost=r"double_blocks\.#\.\w+_(mlp|mod)|single_blocks"
        ),
        ("flux2", Spelling.ORIGINAL, A_B): _ALL,
        ("flux2", Spelling.FLAT, DOWN_UP): Converts(
            lost=r"final_layer\.adaLN|\w+_stream_modulation|guidance_in"
        ),
        ("qwen-image", Spelling.ORIGINAL, A_B): _ALL,
        ("qwen-image", Spelling.ORIGINAL, DOWN_UP): _ALL,
        ("qwen-image", Spelling.FLAT, DOWN_UP): _ALL,
        ("z-image", Spelling.ORIGINAL, A_B): Converts(
            lost=r".*\.attention\.(qkv|out)$|x_embedder|final_layer"
        ),
        ("z-image", Spelling.ORIGINAL, DOWN_UP): Converts(
            lost=r".*\.attention\.qkv$|x_embedder|final_layer"
        ),
        ("z-image", Spelling.FLAT, DOWN_UP): Converts(lost=r"x_embedder|final_layer"),
        ("z-image", Spelling.FLAT_OWN, DOWN_UP): _ALL,
        ("z-image", Spelling.PREFIXED, DOWN_UP): _ALL,
        ("z-image", Spelling.PREFIXED, A_B): _ALL,
        ("lumina2", Spelling.ORIGINAL, A_B): Converts(
            refused=r"context_refiner\.#\.adaLN|(x|t|cap)_embedder|final_layer", blocks=_OF_LUMINA2
        ),
        ("lumina2", Spelling.ORIGINAL, DOWN_UP): _REFUSED,
        ("lumina2", Spelling.PREFIXED, A_B): _REFUSED,
        ("lumina2", Spelling.PREFIXED, DOWN_UP): _REFUSED,
        ("wan", Spelling.ORIGINAL, A_B): Converts(refused=r"patch_embedding|img_emb\.proj\.[04]"),
        ("wan", Spelling.ORIGINAL, DOWN_UP): Converts(refused=_OUTSIDE_WAN),
        ("wan", Spelling.FLAT, DOWN_UP): Converts(
            refused=_OUTSIDE_WAN,
            blocks=(
                *(f"{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"),
                *("ffn.0", "ffn.2"),
            ),
        ),
        ("wan", Spelling.FLAT_OWN, DOWN_UP): _REFUSED,
        ("wan", Spelling.PREFIXED, A_B): _REFUSED,
        ("wan", Spelling.PREFIXED, DOWN_UP): _REFUSED,
        ("hunyuan-video", Spelling.ORIGINAL, A_B): Converts(refused=r"txt_in\..*self_attn_qkv"),
        ("hunyuan-video", Spelling.BARE, A_B): Converts(refused=r"txt_in\..*self_attn_qkv"),
        ("hunyuan-video", Spelling.ORIGINAL, DOWN_UP): _REFUSED,
        ("hunyuan-video", Spelling.FLAT, DOWN_UP): _REFUSED,
        ("anima", Spelling.ORIGINAL, A_B): _ALL,
        # Alphas are kept, and then refused since "lora" is not in their names.
        ("anima", Spelling.ORIGINAL, DOWN_UP): _REFUSED,
    }
)
"""Every conversion; what is not here is left alone."""
# Text encoders under kohya's names are read by these pipelines.
_ENCODERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sd": ("lora_te_", "lora_te1_"),
        "sdxl": ("lora_te_", "lora_te1_", "lora_te2_"),
        "flux": ("lora_te_", "lora_te1_"),
    }
)
# Pipelines that drop what they do not convert, instead of keeping it.
_DROPPING = frozenset({"flux", "flux2", "qwen-image", "z-image"})
_SGM_BLOCK = re.compile(r"lora_unet_input_blocks_(\d+)_")
_OWN_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.")
_BLOCK = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True, slots=True)
class Fate:
    """The keys that are left alone, and those that make the loader raise."""

    lost: tuple[str, ...]
    refused: tuple[str, ...]


def fate_of(names: Collection[str], told: str | None) -> Fate:
    """What becomes of a file's keys; `told` is the architecture's name where it is known."""
    if any("query_norm.scale" in name for name in names):
        return Fate((), ())  # BFL's control files have a converter
    stems = denoiser_stems(names)
    found = likely(stems, told)
    fates = [_in_family(stems, family) for family in found]
    refused = _common(names, [frozenset(each.refused) for each in fates])
    unread = _common(names, [frozenset((*each.lost, *each.refused)) for each in fates])
    lost = [name for name in unread if name not in refused]
    lost += _lost_encoders(names, found)
    # A file that is not converted at all must have "lora" in every key.
    strict = any(family.name not in _DROPPING for family in found)
    whole = len(lost) == len(names) and any("lora" not in name for name in names)
    if (strict and whole) or _mixes_blocks(names):
        return Fate((), tuple(names))
    return Fate(tuple(lost), tuple(refused))


def _mixes_blocks(names: Iterable[str]) -> bool:
    """Whether a UNet's converter takes block 10 of the checkpoint for block 1, and raises."""
    numbers = {match[1] for name in names if (match := _SGM_BLOCK.match(name))}
    return {"1", "10"} <= numbers


def _common(names: Collection[str], sets: Sequence[frozenset[str]]) -> list[str]:
    """The names that are in every set; none where there is no set."""
    return [name for name in names if sets and all(name in each for each in sets)]


def _in_family(stems: Mapping[str, Collection[str]], family: Family) -> Fate:
    lost: set[str] = set()
    refused: set[str] = set()
    blocks: dict[tuple[Converts, str], set[str]] = defaultdict(set)
    for stem, keys in stems.items():
        kinds = [(each, _converts(family, each, keys)) for each in spelled(stem, family)]
        if any(kind is None for _, kind in kinds):
            continue  # diffusers' own names
        rules = [(each, kind) for each, kind in kinds if kind is not None]
        if rules and all(re.match(kind.lost, each.original) for each, kind in rules):
            lost.update(keys)
        elif rules and all(re.match(kind.refused, each.original) for each, kind in rules):
            refused.update(keys)
        for each, kind in rules:
            block = _BLOCK.match(each.seat.original)
            if kind.blocks and block is not None:
                blocks[kind, block[1]].add(each.seat.original.removeprefix(block[0]))
    for (kind, path), there in blocks.items():
        if not there >= set(kind.blocks):
            refused.update(_of_block(stems, family, path))
    return Fate(tuple(lost), tuple(refused - lost))


def _converts(family: Family, each: Spelled, keys: Iterable[str]) -> Converts | None:
    """The rule for one spelling; None for diffusers' own names."""
    if each.spelling is Spelling.OWN:
        return None
    if "processor" in each.original:
        return _ALL  # XLabs' files have a converter
    ending = DOWN_UP if any(".lora_down." in key or ".lora_up." in key for key in keys) else A_B
    return CONVERTS.get((family.name, each.spelling, ending), _NONE)


def _of_block(stems: Mapping[str, Collection[str]], family: Family, block: str) -> Iterator[str]:
    for stem, keys in stems.items():
        if any(each.seat.original.startswith(f"{block}.") for each in spelled(stem, family)):
            yield from keys


def _lost_encoders(names: Iterable[str], found: Iterable[Family]) -> Iterator[str]:
    read = [prefix for family in found for prefix in _ENCODERS.get(family.name, ())]
    for name in names:
        stem = stem_of(name)
        if stem is not None and stem.startswith(TEXT_ENCODERS):
            known = (*_OWN_ENCODERS, *read) if read else (*_OWN_ENCODERS, "lora_te")
            if not stem.startswith(known) and not _of_flux(name, found):
                yield name


def _of_flux(name: str, found: Iterable[Family]) -> bool:
    """Flux' converter knows ComfyUI's names of CLIP, with kohya's endings."""
    clip = name.startswith("text_encoders.clip_l.") and ".lora_" in name
    return clip and ".lora_A" not in name and ".lora_B" not in name and _is_flux(found)


def _is_flux(found: Iterable[Family]) -> bool:
    return any(family.name == "flux" for family in found)
