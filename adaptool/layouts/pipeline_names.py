"""Which real modules a diffusion file's modules are, whatever library's names it uses.

Trainers mix prefixes and namespaces: `diffusion_model.` stands before a checkpoint's names and
before diffusers', `transformer.` as well. The names themselves decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaptool.model.adapter import Adapter, Delta
from adaptool.names import text_encoders
from adaptool.names.diffusion import (
    Family,
    Seat,
    families,
    families_of_modules,
    family_of_originals,
    known_module,
    known_original,
)

Size = tuple[int, int | None]
"""Outputs and inputs of a module; inputs None, or outputs 0, where no tensor tells them."""
DENOISERS = ("unet", "transformer", "transformer_2", "prior")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
COMPONENTS = (*DENOISERS, *TEXT_ENCODERS)
FAMILY = "family"
"""Where an adapter's config keeps the name of its architecture."""
DENOISER = "denoiser"
"""The component of which a file says only that it is the one that denoises."""
CLIP = "clip:"
"""Stands before ComfyUI's name of a text encoder, until the architecture is known."""


@dataclass(frozen=True, slots=True)
class Names:
    """How one file's denoiser is to be read.

    `family` is its architecture where the names tell it, `original` whether they are those of the
    published checkpoint.
    """

    family: Family | None
    original: bool

    @property
    def component(self) -> str:
        """diffusers' name of the denoiser."""
        return self.family.component if self.family else "transformer"

    def modules(
        self, path: str, out: int | None, inner: int | None
    ) -> tuple[tuple[str, ...], Seat | None]:
        """The modules that a module of the denoiser stands for, and the seat they share.

        None where it is unknown. `out` and `inner` are its sizes as far as its tensors tell them.
        """
        if not self.original or self.family is None:
            return (path,), None
        seat = self.family.by_original(path)
        if seat is None:
            return self._member(path, self.family), None
        fits = out is None or seat.fits(out, inner)
        return (seat.modules if fits else ()), seat

    def _member(self, path: str, family: Family) -> tuple[str, ...]:
        """`img_attn.qkv.0`: the first member of a fused module, stored apart."""
        fused, _, place = path.rpartition(".")
        seat = family.by_original(fused)
        if seat is not None and seat.fused and place.isdigit() and int(place) < len(seat.modules):
            return (seat.modules[int(place)],)
        return (path,) if family.by_module(path) else ()


def names_of(sizes: Mapping[str, Size], base: Iterable[str] = ()) -> Names:
    """Whose names the denoiser's modules are, path -> (out, in); `base`: its tensors' names."""
    original = family_of_originals(sizes)
    candidates = families_of_modules(sizes)
    as_original = _known(original, sizes, original=True)
    if as_original > max((_known(each, sizes, original=False) for each in candidates), default=0):
        return Names(original, original=True)
    return Names(_one_of(candidates, base), original=False)


def _known(family: Family | None, paths: Iterable[str], *, original: bool) -> int:
    if family is None:
        return 0
    find = family.by_original if original else family.by_module
    return sum(find(path) is not None for path in paths)


def _one_of(candidates: Sequence[Family], base: Iterable[str]) -> Family | None:
    """The only candidate, or the one that knows the base's modules best."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    modules = {name.rpartition(".")[0].removeprefix(_CHECKPOINT) for name in base}
    found = {
        family.name: sum(bool(family.by_original(m) or family.by_module(m)) for m in modules)
        for family in candidates
    }
    best = [family for family in candidates if found[family.name] == max(found.values())]
    return best[0] if len(best) == 1 else None


_CHECKPOINT = "model.diffusion_model."


# What ComfyUI calls the text encoders of each architecture, in diffusers' order of components.
_CLIPS: Mapping[str, tuple[str, ...]] = {
    "sd": ("clip_l",),
    "sdxl": ("clip_l", "clip_g"),
    "sd3": ("clip_l", "clip_g", "t5xxl"),
    "flux": ("clip_l", "t5xxl"),
    "hunyuan-video": ("llama", "clip_l"),
    "wan": ("umt5xxl",),
    "qwen-image": ("qwen25_7b",),
    "z-image": ("qwen3_4b",),
    "lumina2": ("gemma2_2b",),
}
_LIKELY = ("clip_l", "clip_g")


def text_encoder_of(clip: str, family: Family | None) -> str | None:
    """diffusers' component for ComfyUI's name of a text encoder; None where it has none."""
    names = _CLIPS.get(family.name, ()) if family else _LIKELY
    return TEXT_ENCODERS[names.index(clip)] if clip in names else None


def clip_of(component: str, family: Family | None) -> str | None:
    """ComfyUI's name for a text encoder's component; None where it has none."""
    names = _CLIPS.get(family.name, ()) if family else _LIKELY
    place = TEXT_ENCODERS.index(component)
    return names[place] if place < len(names) else None


def is_of_pipeline(module: str) -> bool:
    """Whether a model of a diffusion pipeline has this module, with its component's name or not."""
    path = bare(module)
    return known_module(path) or known_original(path) or text_encoders.knows(path)


# Inputs of the attention's projections in the published models, where block counts do not decide.
_WIDTHS: Mapping[str, frozenset[int]] = {
    "sd": frozenset({320, 640, 768, 1024, 1280}),
    "sdxl": frozenset({640, 1280, 2048}),
    "flux": frozenset({3072}),
    "sd3": frozenset({1536, 2432}),
}
# Beginnings of what trainers record about the model they trained.
_RECORDED = (
    ("sdxl", "sdxl"),
    ("stable-diffusion-xl", "sdxl"),
    ("sd3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("flux", "flux"),
    ("sd_", "sd"),
    ("stable-diffusion-v", "sd"),
    ("hunyuan", "hunyuan-video"),
    ("qwen", "qwen-image"),
    ("wan", "wan"),
)


def family_of(adapter: Adapter) -> Family | None:
    """The architecture that an adapter is for; None where its modules fit several, or none.

    What it was read as decides, then its modules' names, then metadata, then sizes.
    """
    named = families().get(str(adapter.config.get(FAMILY, "")))
    if named is not None:
        return named
    found = families_fitting(adapter)
    return found[0] if len(found) == 1 else None


def families_fitting(adapter: Adapter) -> tuple[Family, ...]:
    """The architectures that an adapter may be for by its names, metadata and sizes."""
    found = families_of_modules(bare(delta.module) for delta in adapter.deltas)
    for hint in (recorded(adapter.metadata), _of_width(adapter.deltas)):
        fitting = [family for family in found if family.name in hint]
        found = tuple(fitting) or found
    return found


def recorded(metadata: Mapping[str, str]) -> frozenset[str]:
    """The architectures that a trainer's metadata names."""
    said = " ".join(metadata.get(key, "").lower() for key in _ARCHITECTURE_KEYS).split()
    return frozenset(name for start, name in _RECORDED for word in said if word.startswith(start))


_ARCHITECTURE_KEYS = ("modelspec.architecture", "ss_base_model_version")


def _of_width(deltas: Sequence[Delta]) -> frozenset[str]:
    inputs = {delta.terms.inner for delta in deltas if delta.module.endswith((".to_q", ".to_k"))}
    return frozenset(name for name, widths in _WIDTHS.items() if inputs and inputs <= widths)


def bare(module: str) -> str:
    """The path within its component."""
    component, _, rest = module.partition(".")
    return rest if component in COMPONENTS else module


def component_of(module: str, family: Family | None) -> str | None:
    """The component that a module belongs to; None where neither its path nor its names tell."""
    component = module.partition(".")[0]
    if component in COMPONENTS:
        return component
    if family is not None and family.by_module(module):
        return family.component
    if module.startswith(_ENCODER_STACKS) and text_encoders.knows(module):
        return TEXT_ENCODERS[0]
    stack = module.partition(".")[0]
    return next((name for name, stacks in _STACKS.items() if stack in stacks), None)


# CLIP's and T5's; a decoder's could be a language model's of its own.
_ENCODER_STACKS = ("text_model.", "encoder.block.")
# First parts of paths in diffusers' models, for architectures without a table.
_STACKS: Mapping[str, frozenset[str]] = {
    "unet": frozenset({"down_blocks", "mid_block", "up_blocks"}),
    "transformer": frozenset({"transformer_blocks", "single_transformer_blocks"}),
}
