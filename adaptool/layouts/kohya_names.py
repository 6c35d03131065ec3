"""Whose module a flattened name is: the base's own names first, known models' names else.

kohya flattens the names of the model that it trains: diffusers' for Stable Diffusion 1 and 2, the
checkpoint's for SDXL, SD3 and Flux, transformers' for text encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.layouts.kohya_keys import DENOISER, PIPELINE, component_of, listed
from adaptool.layouts.pipeline_names import recorded
from adaptool.model.reading import BaseNames
from adaptool.names import text_encoders
from adaptool.names.diffusion import Family, Rows, Seat, families
from adaptool.store.adapter_files import AdapterFiles

Size = tuple[int, int | None]
"""Outputs and inputs of a module; inputs None where they stand in no tensor."""

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


@dataclass(frozen=True, slots=True)
class Place:
    """The modules a name stands for, as full paths; `seat` where they share a fused one."""

    modules: tuple[str, ...]
    seat: Seat | None = None

    def rows(self, out: int, inner: int | None) -> tuple[Rows, ...]:
        """Which of the stored rows are whose, in order."""
        return ((((0, out),),)) if self.seat is None else self.seat.rows(out, inner)


@dataclass(frozen=True, slots=True)
class Named:
    """Where each flattened name leads, and the denoiser's architecture ("": not known)."""

    places: Mapping[str, Place]
    family: str


def places(
    sizes: Mapping[str, Size | None],
    components: Mapping[str, str],
    base: BaseNames | None,
    files: AdapterFiles,
) -> Named:
    """Where each flattened name leads; InputError that lists those that lead nowhere."""
    split = {flat: found for flat in sizes if (found := component_of(flat, components))}
    known = _in_base(split, base)
    rest = {flat: sizes[flat] for flat in sizes if flat not in known}
    inner = {flat: split[flat][1] for flat in rest if split[flat][0] in _DENOISING}
    file, denoising = files.source.name, {name: rest[flat] for flat, name in inner.items()}
    family = _family(denoising, files.header.metadata, file)
    for flat, size in rest.items():
        component, name = split[flat]
        place = _of_family(family, name, size) if component in _DENOISING else None
        if component != DENOISER and place is None:
            place = _of_encoder(_encoder(component, split, family), name)
        if place is not None:
            known[flat] = place
    unknown = [flat for flat in sizes if flat not in known]
    if unknown:
        _refuse(unknown, len(sizes), file, base)
    return Named(known, family.name if family else "")


def _refuse(unknown: list[str], count: int, file: str, base: BaseNames | None) -> None:
    where = "neither in the base nor in a model known here" if base else "in no model known here"
    message = f"{len(unknown)} of {count} modules are {where}: {listed(unknown)}"
    hint = "--base CHECKPOINT: its own names say where the underscores were dots"
    raise InputError(message, code=Code.KEYS_UNRECOGNISED, file=file, tensor=unknown[0], hint=hint)


def _in_base(split: Mapping[str, tuple[str, str]], base: BaseNames | None) -> dict[str, Place]:
    if base is None:
        return {}
    by_flat: dict[str, str] = {}
    for tensor in base.shapes:
        path = tensor.rpartition(".")[0]
        by_flat.setdefault(path.replace(".", "_"), path)
    found = {}
    for flat, (component, name) in split.items():
        prefixes = _ENCODER_PREFIXES.get(component, _DENOISER_PREFIXES)
        for prefix in prefixes:
            module = by_flat.get(prefix.replace(".", "_") + name)
            if module is not None and module.startswith(prefix):
                path = module.removeprefix(prefix)
                found[flat] = Place((f"{_named(component, path)}.{path}",))
                break
    return found


def _named(component: str, path: str) -> str:
    """The component as pipelines name it."""
    if component not in _DENOISING:
        return component
    return "unet" if path.partition(".")[0] in _UNET_WORDS else "transformer"


def _family(
    sizes: Mapping[str, Size | None], metadata: Mapping[str, str], file: str
) -> Family | None:
    """The architecture that knows the most of these names; InputError where two say otherwise.

    Among those that know as many it is the one that the metadata names, or the one whose fused
    modules have these sizes.
    """
    scores = {
        family: sum(_of_family(family, flat, size) is not None for flat, size in sizes.items())
        for family in families().values()
    }
    best = [family for family, score in scores.items() if score and score == max(scores.values())]
    named = [family for family in best if family.name in recorded(metadata)]
    best = named or best
    if len({frozenset(_paths(family, sizes)) for family in best}) > 1:
        fused = {family: sum(map(_is_fused, _places(family, sizes))) for family in best}
        best = [family for family in best if fused[family] == max(fused.values())]
    if len({frozenset(_paths(family, sizes)) for family in best}) > 1:
        message = f"these names are those of {' and of '.join(each.name for each in best)}"
        hint = "--base CHECKPOINT tells which"
        raise InputError(message, code=Code.LAYOUT_AMBIGUOUS, file=file, hint=hint)
    return best[0] if best else None


def _places(family: Family, sizes: Mapping[str, Size | None]) -> Iterator[Place | None]:
    return (_of_family(family, flat, size) for flat, size in sizes.items())


def _is_fused(place: Place | None) -> bool:
    return place is not None and len(place.modules) > 1


def _paths(family: Family, sizes: Mapping[str, Size | None]) -> Iterator[tuple[str, ...]]:
    return (() if place is None else place.modules for place in _places(family, sizes))


def _of_family(family: Family | None, name: str, size: Size | None) -> Place | None:
    if family is None:
        return None
    seat = family.by_flat_original(name)
    if seat is not None and (size is None or seat.fits(*size)):
        return Place(tuple(f"{family.component}.{module}" for module in seat.modules), seat)
    module = family.by_flat_module(name)
    return None if module is None else Place((f"{family.component}.{module}",))


def _encoder(component: str, split: Mapping[str, tuple[str, str]], family: Family | None) -> str:
    """The encoder's own name.

    te3 is T5: the third encoder of SD3, the second of Flux, which has no `te2`.
    """
    if component == PIPELINE:
        return "text_encoder"
    if component != "text_encoder_3" or any(
        found == "text_encoder_2" for found, _ in split.values()
    ):
        return component
    return component if family is not None and family.name == "sd3" else "text_encoder_2"


def _of_encoder(component: str, name: str) -> Place | None:
    path = text_encoders.path_of(name)
    return None if path is None else Place((f"{component}.{path}",))
