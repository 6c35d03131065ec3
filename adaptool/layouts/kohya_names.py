"""Whose module a flattened name is: the base's own names first, known models' names else.

kohya flattens the names of the model that it trains: diffusers' for Stable Diffusion 1 and 2, the
checkpoint's for SDXL, SD3 and Flux, transformers' for text encoders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.layouts.kohya_keys import DENOISER, PIPELINE, component_of, listed
from adaptool.layouts.pipeline_families import (
    Decided,
    Place,
    Told,
    decided,
    flattened,
    of_base,
    tables_of,
)
from adaptool.layouts.pipeline_names import Size
from adaptool.model.reading import BaseNames
from adaptool.names import text_encoders
from adaptool.names.diffusion import Family
from adaptool.store.adapter_files import AdapterFiles

# What stands before a component's modules in files that hold a whole pipeline, or only it.
_DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "")
_ENCODER_PREFIXES = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
        "text_encoder.",
        "",
    ),
    "text_encoder_2": ("text_encoder_2.", ""),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.", "text_encoder_3.", ""),
}
_DENOISING = frozenset({DENOISER, PIPELINE})
_UNET_WORDS = frozenset({"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out"})
_UNET_WORDS |= {"input_blocks", "middle_block", "output_blocks", "time_embedding", "add_embedding"}
# Pipelines with several text encoders, and the number that each has in kohya's prefix.
NUMBERED: Mapping[str, tuple[int, ...]] = {"sdxl": (1, 2), "sd3": (1, 2, 3), "flux": (1, 3)}


@dataclass(frozen=True, slots=True)
class Named:
    """Where each flattened name leads, and the architectures that the denoiser may be."""

    places: Mapping[str, Place]
    architectures: tuple[str, ...]


def places(
    sizes: Mapping[str, Size | None],
    components: Mapping[str, str],
    base: BaseNames | None,
    files: AdapterFiles,
    whole: frozenset[str] = frozenset(),
) -> Named:
    """Where each flattened name leads; InputError that lists those that lead nowhere.

    Names that the base's architecture reads lead to diffusers' modules, all but those in `whole`:
    what they hold cannot be divided among the modules that a checkpoint's module stands for.
    MismatchError where a name leads to several modules and nothing says to which.
    """
    split = {flat: found for flat in sizes if (found := component_of(flat, components))}
    known = _in_base(split, sizes, base, files.source.name)
    inner = {split[flat][1]: flat for flat in split if split[flat][0] in _DENOISING}
    denoising = {name: sizes[flat] for name, flat in inner.items()}
    settled = frozenset(name for name, flat in inner.items() if flat in known)
    told = Told(files.header.metadata, base, files.source.name, _encoders(split))
    denoiser = decided(denoising, flattened(), told, settled)
    component = denoiser.component(())
    is_told = base is not None and bool(of_base(base))
    for flat, size in sizes.items():
        is_denoisers = split[flat][0] in _DENOISING
        if flat not in known or (is_told and is_denoisers and flat not in whole):
            place = _elsewhere(split, flat, size, denoiser, component)
            if place is not None:
                known[flat] = place
    unknown = [flat for flat in sizes if flat not in known]
    if unknown:
        _refuse(unknown, len(sizes), files.source.name, base)
    return Named(known, denoiser.names or _by_encoders(sizes))


def _encoders(split: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The text encoders that kohya numbers: its third is the second of some pipelines."""
    return {
        component: text_encoders.kind_of(text_encoders.path_of(name) or "")
        for component, name in split.values()
        if component in ("text_encoder", "text_encoder_2")
    }


def _by_encoders(flats: Iterable[str]) -> tuple[str, ...]:
    """Of an adapter for text encoders alone: kohya numbers them where a pipeline has several."""
    numbers = {flat.partition("_te")[2][:1] for flat in flats if flat.startswith("lora_te")}
    numbered = {int(number) for number in numbers if number.isdigit()}
    if not numbered:
        return ()
    return tuple(name for name, known in NUMBERED.items() if numbered <= set(known))


def _elsewhere(
    split: Mapping[str, tuple[str, str]],
    flat: str,
    size: Size | None,
    found: Decided,
    denoiser: str,
) -> Place | None:
    """Where a name leads that the base does not have."""
    component, name = split[flat]
    if component in _DENOISING:
        spelled = (each for each in flattened() if each.architecture in found.architectures)
        places = (each.find(name, size) for each in spelled)
        place = next((place for place in places if place is not None), None)
        if place is not None:
            return place.within(denoiser)
    if component == DENOISER:
        return None
    return _of_encoder(_encoder(component, split, tables_of(found.names)), name)


def _refuse(unknown: list[str], count: int, file: str, base: BaseNames | None) -> None:
    where = "neither in the base nor in a model known here" if base else "in no model known here"
    message = f"{len(unknown)} of {count} modules are {where}: {listed(unknown)}"
    hint = "--base CHECKPOINT: its own names say where the underscores were dots"
    raise InputError(message, code=Code.KEYS_UNRECOGNISED, file=file, tensor=unknown[0], hint=hint)


def _in_base(
    split: Mapping[str, tuple[str, str]],
    sizes: Mapping[str, Size | None],
    base: BaseNames | None,
    file: str,
) -> dict[str, Place]:
    """The modules of the base that names lead to; MismatchError where it has several for one."""
    if base is None:
        return {}
    by_flat: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor, shape in base.shapes.items():
        path, _, leaf = tensor.rpartition(".")
        modules = by_flat.setdefault(path.replace(".", "_"), {})
        if path not in modules or leaf == "weight":
            modules[path] = shape
    found = {}
    for flat, (component, name) in split.items():
        prefixes = _ENCODER_PREFIXES.get(component, _DENOISER_PREFIXES)
        for prefix in prefixes:
            shapes = by_flat.get(prefix.replace(".", "_") + name, {})
            own = {path: shape for path, shape in shapes.items() if path.startswith(prefix)}
            if own:
                module = _only_one(flat, own, sizes[flat], file)
                path = module.removeprefix(prefix)
                found[flat] = Place((f"{_named(component, path, base)}.{path}",))
                break
    return found


def _only_one(
    flat: str, shapes: Mapping[str, tuple[int, ...]], size: Size | None, file: str
) -> str:
    """The one module whose sizes these are; MismatchError for several."""
    fitting = [path for path, shape in shapes.items() if _fits(shape, size)]
    found = fitting or list(shapes)
    if len(found) > 1:
        message = f"{' and '.join(sorted(found))} of the base are both called so without their dots"
        hint = "the file cannot say which: give the adapter in a layout that keeps the dots"
        raise MismatchError(message, code=Code.LAYOUT_AMBIGUOUS, file=file, tensor=flat, hint=hint)
    return found[0]


def _fits(shape: tuple[int, ...], size: Size | None) -> bool:
    """Whether a weight may have these outputs and inputs, as far as they are known."""
    if size is None:
        return True
    out, inner = size
    wide = inner is None or inner in (prod(shape[1:]), *shape[1:2])
    return not out or (shape[:1] == (out,) and wide)


def _named(component: str, path: str, base: BaseNames) -> str:
    """The component as pipelines name it."""
    if component not in _DENOISING:
        return component
    known = {each.component for each in of_base(base)}
    if len(known) == 1:
        return known.pop()
    return "unet" if path.partition(".")[0] in _UNET_WORDS else "transformer"


def _encoder(
    component: str, split: Mapping[str, tuple[str, str]], tables: Sequence[Family | None]
) -> str:
    """The encoder's own name.

    te3 is T5: the third encoder of SD3, the second of Flux, which has no `te2`.
    """
    if component == PIPELINE:
        return "text_encoder"
    if component != "text_encoder_3" or any(
        found == "text_encoder_2" for found, _ in split.values()
    ):
        return component
    is_third = any(table is not None and table.name == "sd3" for table in tables)
    return component if is_third else "text_encoder_2"


def _of_encoder(component: str, name: str) -> Place | None:
    path = text_encoders.path_of(name)
    return None if path is None else Place((f"{component}.{path}",))
