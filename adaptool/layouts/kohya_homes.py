"""The names that kohya gives modules: the inverse of `kohya_names`.

Its UNets of Stable Diffusion 1 and 2 carry diffusers' names, every other denoiser the names of the
published checkpoint, where several modules may be one. A pipeline with one text encoder has
`lora_te_`, others `lora_te1_` and on; Flux's second encoder is T5, which is `lora_te3_`.
"""

from __future__ import annotations

from adaptool.layouts.kohya_names import NUMBERED
from adaptool.layouts.pipeline_families import tables_of
from adaptool.layouts.pipeline_homes import Home, Homes, homes_of
from adaptool.layouts.pipeline_names import DENOISERS, TEXT_ENCODERS, bare, component_of
from adaptool.model.adapter import Adapter, Delta
from adaptool.names import text_encoders
from adaptool.names.diffusion import Family, known_original

# Families that kohya trains under diffusers' names.
_AS_DIFFUSERS = frozenset({"sd"})


def homes(adapter: Adapter) -> Homes:
    """Where its modules go, with the reasons of those that have no place."""
    uncertain = _any_unet(adapter)
    several = any(component_of(d.module, None) in TEXT_ENCODERS[1:] for d in adapter.deltas)

    def home(delta: Delta, family: Family | None) -> Home | None:
        family = uncertain or family
        component, path = component_of(delta.module, family), bare(delta.module)
        if component in TEXT_ENCODERS:
            return _encoder_home(_numbers(family, several=several), component, path)
        return _denoiser_home(family, component, path)

    return homes_of(adapter, home)


def _numbers(family: Family | None, *, several: bool) -> tuple[int, ...]:
    return NUMBERED.get(family.name if family else "", (1, 2, 3) if several else ())


def _any_unet(adapter: Adapter) -> Family | None:
    """Of UNets between which nothing tells the one that keeps diffusers' names.

    Whoever reads kohya's files knows those for any UNet.
    """
    tables = [table for table in tables_of(adapter.architectures) if table]
    several = len(tables) > 1 and {table.component for table in tables} == {"unet"}
    return next((t for t in tables if several and t.name in _AS_DIFFUSERS), None)


def family_for(adapter: Adapter) -> Family | None:
    """The architecture, where there is only one that it can be."""
    tables = tables_of(adapter.architectures)
    return tables[0] if len(tables) == 1 else None


def _denoiser_home(family: Family | None, component: str | None, path: str) -> Home | None:
    seat = family.by_module(path) if family is not None else None
    if family is None or seat is None:
        # Read by the base's own names, under which a fused module stays one.
        known = component in DENOISERS and known_original(path)
        return Home(_flat("lora_unet", path)) if known else None
    if family.name in _AS_DIFFUSERS:
        return Home(_flat("lora_unet", path))
    return Home(_flat("lora_unet", seat.original), seat, seat.modules.index(path))


def _encoder_home(numbers: tuple[int, ...], component: str, path: str) -> Home | None:
    place, stored = TEXT_ENCODERS.index(component), text_encoders.stored_path(path)
    if stored is None or (numbers and place >= len(numbers)):
        return None
    return Home(_flat(f"lora_te{numbers[place]}" if numbers else "lora_te", stored))


def _flat(prefix: str, path: str) -> str:
    return f"{prefix}_{path.replace('.', '_')}"
