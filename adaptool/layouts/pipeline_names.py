"""Which real modules a diffusion file's modules are, whatever library's names it uses.

Trainers mix prefixes and namespaces: `diffusion_model.` stands before a checkpoint's names and
before diffusers', `transformer.` as well. The names themselves decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adaptool.names import text_encoders
from adaptool.names.diffusion import Family, known_module, known_original

Size = tuple[int, int | None]
"""Outputs and inputs of a module; inputs None, or outputs 0, where no tensor tells them."""
DENOISERS = ("unet", "transformer", "transformer_2", "prior")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
COMPONENTS = (*DENOISERS, *TEXT_ENCODERS)
DENOISER = "denoiser"
"""The component of which a file says only that it is the one that denoises."""
CLIP = "clip:"
"""Stands before ComfyUI's name of a text encoder, until the architecture is known."""


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
    "flux2": ("mistral3_24b",),
    "anima": ("qwen3_06b",),
}
_LIKELY = ("clip_l", "clip_g")
_KINDS: Mapping[str, str] = {"clip_l": "clip", "clip_g": "clip", "t5xxl": "t5", "umt5xxl": "t5"}
# Inputs of the two CLIP encoders' layers.
_CLIP_WIDTHS: Mapping[str, frozenset[int]] = {
    "clip_l": frozenset({768, 3072}),
    "clip_g": frozenset({1280, 5120}),
}


def text_encoder_of(clip: str, tables: Sequence[Family | None]) -> str | None:
    """diffusers' component for ComfyUI's name of a text encoder.

    None where the pipeline has none, or the pipelines that it may be call different ones so.
    """
    pipelines = [_CLIPS.get(table.name, ()) for table in tables if table] or [_LIKELY]
    found = {TEXT_ENCODERS[names.index(clip)] for names in pipelines if clip in names}
    return found.pop() if len(found) == 1 else None


def has_encoders(table: Family | None, kinds: Mapping[str, str]) -> bool:
    """Whether a pipeline may have these text encoders, component or ComfyUI's name -> kind."""
    if table is None:
        return True
    names = _CLIPS.get(table.name, ())
    own = {TEXT_ENCODERS[place]: _KINDS.get(name, "decoder") for place, name in enumerate(names)}
    own |= {name: _KINDS.get(name, "decoder") for name in names}
    return all(own.get(name) == kind for name, kind in kinds.items())


def clip_of(component: str, family: Family | None, path: str, inner: int) -> str | None:
    """ComfyUI's name for a text encoder's component, which has this module with these inputs.

    None where the pipeline has none, or nothing tells which of several pipelines' it is.
    """
    place = TEXT_ENCODERS.index(component)
    if family is not None:
        names = _CLIPS.get(family.name, ())
        return names[place] if place < len(names) else None
    kind = text_encoders.kind_of(path)
    found = {
        names[place]
        for names in _CLIPS.values()
        if place < len(names) and _KINDS.get(names[place], "decoder") == kind
    }
    wide = {name for name in found if inner in _CLIP_WIDTHS.get(name, ())}
    found = wide or found
    return found.pop() if len(found) == 1 else None


# Layouts whose modules have the name of their component before them, a table or not.
_OF_PIPELINES = frozenset(
    {"bfl", "cloneofsimo", "comfyui", "diffusers", "kohya", "lycoris", "onetrainer", "xlabs"}
)


def is_one_component(layout: str, modules: Sequence[str]) -> bool:
    """Whether modules read from `layout` are all of one model, and named with its component.

    A language model may have a `transformer.` of its own, so others must be known as a pipeline's.
    """
    first = {module.partition(".")[0] for module in modules}
    if len(first) != 1 or not first <= {*COMPONENTS}:
        return False
    return layout in _OF_PIPELINES or all(map(is_of_pipeline, modules))


def is_of_pipeline(module: str) -> bool:
    """Whether a model of a diffusion pipeline has this module, with its component's name or not."""
    path = bare(module)
    return known_module(path) or known_original(path) or text_encoders.knows(path)


# Beginnings of what trainers record about the model they trained: the first that fits counts.
_RECORDED = (
    ("sdxl", "sdxl"),
    ("stable-diffusion-xl", "sdxl"),
    ("sd3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("flux2", "flux2"),
    ("flux.2", "flux2"),
    ("flux-2", "flux2"),
    ("flux_2", "flux2"),
    ("flux3", "Flux3Transformer2DModel"),
    ("flux.3", "Flux3Transformer2DModel"),
    ("flux", "flux"),
    ("chroma", "flux"),
    ("sd_", "sd"),
    ("stable-diffusion-v", "sd"),
    ("stable-diffusion-1", "sd"),
    ("stable-diffusion-2", "sd"),
    ("hunyuan-image", "HunyuanImageTransformer2DModel"),
    ("hunyuanimage", "HunyuanImageTransformer2DModel"),
    ("hunyuan-video-1.5", "HunyuanVideo15Transformer3DModel"),
    ("hunyuanvideo-1.5", "HunyuanVideo15Transformer3DModel"),
    ("hunyuan", "hunyuan-video"),
    ("qwen-image-2.1", "QwenImage21Transformer2DModel"),
    ("qwen", "qwen-image"),
    ("wan", "wan"),
    ("z-image", "z-image"),
    ("zimage", "z-image"),
    ("z_image", "z-image"),
    ("lumina", "lumina2"),
    ("anima", "anima"),
)
_ARCHITECTURE_KEYS = (
    "modelspec.architecture",
    "ss_base_model_version",
    "base_model_name_or_path",
)


def recorded(metadata: Mapping[str, str]) -> frozenset[str]:
    """The architectures that a trainer's metadata names, or the address of a base."""
    said = " ".join(
        part for key in _ARCHITECTURE_KEYS for part in metadata.get(key, "").lower().split("/")
    )
    found = (_recorded_word(word) for word in said.split())
    return frozenset(name for name in found if name)


def _recorded_word(word: str) -> str:
    return next((name for start, name in _RECORDED if word.startswith(start)), "")


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
    return next((name for name, stack in _STACKS.items() if stack.match(module)), None)


# CLIP's and T5's; a decoder's could be a language model's of its own.
_ENCODER_STACKS = ("text_model.", "encoder.block.")
# Beginnings of paths in diffusers' models, for architectures without a table.
_STACKS: Mapping[str, re.Pattern[str]] = {
    "unet": re.compile(
        r"(?:down_blocks|up_blocks)\.\d+\.(?:attentions|resnets|downsamplers|upsamplers)\."
        r"|mid_block\.|(?:conv_in|conv_out|time_embedding|add_embedding)\b"
        r"|(?:input_blocks|output_blocks)\.\d+\.|middle_block\."
    ),
    "transformer": re.compile(r"(?:single_)?transformer_blocks\."),
}


def denoiser_of(paths: Sequence[str]) -> str:
    """The component of a denoiser whose architecture is not known: a UNet has a UNet's blocks."""
    is_unet = any(_STACKS["unet"].match(path) for path in paths)
    return "unet" if is_unet else "transformer"
