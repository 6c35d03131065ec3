"""How a file of a diffusion pipeline spells its modules' names, whichever program wrote it.

A key is a stem and an ending (`diffusion_model.double_blocks.0.img_attn.qkv` + `.lora_A.weight`).
The stem spells a module of an architecture in one of the ways below; what a program reads is then a
matter of the architecture and the spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from adaptool.names.diffusion import Family, Seat, families

# Endings by which trainers name the tensors of a module, the longest first.
_FACTORS = (
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora.up.weight"),
    *("lora.down.weight", "lora_A.weight", "lora_B.weight", "lora_A.default.weight"),
    *("lora_B.default.weight", "lora_A", "lora_B", "lora_linear_layer.up.weight"),
    *("lora_linear_layer.down.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b"),
    *("hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_w1_a"),
    *("lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "a1.weight", "a2.weight", "b1.weight"),
    *("b2.weight", "oft_blocks", "rescale", "w_norm", "b_norm", "diff", "diff_b"),
)
ENDINGS = tuple(sorted((f".{each}" for each in _FACTORS), key=len, reverse=True))
# XLabs' processors hold factors beside the modules.
_XLABS = re.compile(
    r"((?:double|single)_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]?)\.(?:down|up)\.weight"
)
# The processors of diffusers before 0.22: `attn1.processor.to_q_lora.down.weight`.
_PROCESSOR = ("_lora.up.weight", "_lora.down.weight")
TEXT_ENCODERS = ("text_encoder", "text_encoders.", "lora_te", "te1.", "te2.")


def stem_of(name: str) -> str | None:
    """The key without its ending; None where the ending is none of a trainer's."""
    xlabs = _XLABS.fullmatch(name)
    if xlabs is not None:
        return xlabs[1]
    for ending in (*_PROCESSOR, *ENDINGS):
        if name.endswith(ending):
            return name.removesuffix(ending) or None
    return None


class Spelling(StrEnum):
    """Which names a stem has, and what stands before them."""

    OWN = "the component, then diffusers' names"
    ORIGINAL = "diffusion_model., then the checkpoint's names"
    PREFIXED = "diffusion_model., then diffusers' names"
    FLAT = "lora_unet_, then the checkpoint's names"
    FLAT_OWN = "lora_unet_, then diffusers' names"
    ONETRAINER = "lora_transformer_, then diffusers' names"
    LYCORIS = "lycoris_, then diffusers' names"
    TRANSFORMER = "transformer., then the checkpoint's names"
    PEFT = "base_model.model., then diffusers' names"
    BARE = "the checkpoint's names"
    BARE_OWN = "diffusers' names"


@dataclass(frozen=True, slots=True)
class Spelled:
    """A stem that names a module of an architecture; `module` is diffusers' name of it."""

    spelling: Spelling
    seat: Seat
    module: str

    @property
    def original(self) -> str:
        """The checkpoint's name, with `#` for what is numbered."""
        return self.seat.rule.original


# What stands before the names, whether they are flattened, and the checkpoint's or diffusers'.
_PREFIXES = (
    ("diffusion_model.", False, Spelling.ORIGINAL, Spelling.PREFIXED),
    ("lora_unet__", True, Spelling.FLAT, Spelling.FLAT_OWN),
    ("lora_unet_", True, Spelling.FLAT, Spelling.FLAT_OWN),
    ("lora_transformer_", True, None, Spelling.ONETRAINER),
    ("lycoris_", True, None, Spelling.LYCORIS),
    ("base_model.model.", False, None, Spelling.PEFT),
    ("transformer.", False, Spelling.TRANSFORMER, Spelling.OWN),
    ("unet.", False, None, Spelling.OWN),
    ("", False, Spelling.BARE, Spelling.BARE_OWN),
)


def spelled(stem: str, family: Family) -> tuple[Spelled, ...]:
    """The ways in which the stem names a module of the architecture: none, one, or both names.

    Some modules have the same name in the checkpoint and in diffusers.
    """
    for prefix, flat, original, own in _PREFIXES:
        if stem.startswith(prefix):
            path = stem.removeprefix(prefix)
            mine = Spelling.OWN if prefix == f"{family.component}." else own
            return tuple(_spellings(path, family, original, mine, flat=flat))
    return ()


def _spellings(
    path: str, family: Family, original: Spelling | None, own: Spelling, *, flat: bool
) -> Iterator[Spelled]:
    seat = family.by_flat_original(path) if flat else family.by_original(path)
    if seat is not None and original is not None:
        yield Spelled(original, seat, seat.modules[0])
    module = _own(path, family, flat=flat)
    mine = family.by_module(module) if module is not None else None
    if module is not None and mine is not None:
        yield Spelled(own, mine, module)


def _own(path: str, family: Family, *, flat: bool) -> str | None:
    if flat:
        return family.by_flat_module(path)
    plain = path.replace(".processor.to_", ".to_")
    if plain != path and plain.endswith(".to_out"):
        plain = f"{plain}.0"
    return plain if family.by_module(plain) is not None else None


def likely(stems: Iterable[str], told: str | None = None) -> tuple[Family, ...]:
    """The architectures that know the most of these stems; the one that is `told` among them."""
    names = list(stems)
    counts = {
        family.name: sum(bool(spelled(stem, family)) for stem in names)
        for family in families().values()
    }
    most = max(counts.values(), default=0)
    best = [families()[name] for name, count in counts.items() if count == most and most]
    return tuple(each for each in best if each.name == told) or tuple(best)


def denoiser_stems(names: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """The keys by stem, text encoders' left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem = stem_of(name)
        if stem is not None and not stem.startswith(TEXT_ENCODERS):
            found.setdefault(stem, []).append(name)
    return found
