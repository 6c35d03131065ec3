"""The names that kohya gives modules: the inverse of `kohya_names`.

Its UNets of Stable Diffusion 1 and 2 carry diffusers' names, every other denoiser the names of the
published checkpoint, where several modules may be one. A pipeline with one text encoder has
`lora_te_`, others `lora_te1_` and on; Flux's second encoder is T5, which is `lora_te3_`.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.layouts.pipeline_names import (
    DENOISERS,
    TEXT_ENCODERS,
    bare,
    component_of,
    families_fitting,
    family_of,
)
from adaptool.layouts.seated import Home
from adaptool.model.adapter import Adapter
from adaptool.names import text_encoders
from adaptool.names.diffusion import Family, known_original

# Pipelines with several text encoders, and the number that each has in kohya's prefix.
_NUMBERED: Mapping[str, tuple[int, ...]] = {"sdxl": (1, 2), "sd3": (1, 2, 3), "flux": (1, 3)}
# Families that kohya trains under diffusers' names.
_AS_DIFFUSERS = frozenset({"sd"})


def homes(adapter: Adapter) -> dict[str, Home]:
    """Module -> home; modules that no diffusion pipeline known here has are left out."""
    family = family_for(adapter)
    split = {
        delta.module: (component_of(delta.module, family), bare(delta.module))
        for delta in adapter.deltas
    }
    several = any(component in TEXT_ENCODERS[1:] for component, _ in split.values())
    numbers = _NUMBERED.get(family.name if family else "", (1, 2, 3) if several else ())
    found = {}
    for module, (component, path) in split.items():
        home = (
            _encoder_home(numbers, component, path)
            if component in TEXT_ENCODERS
            else _denoiser_home(family, component, path)
        )
        if home is not None:
            found[module] = home
    return found


def family_for(adapter: Adapter) -> Family | None:
    """The architecture; of UNets that cannot be told apart the one that keeps diffusers' names.

    Whoever reads kohya's files knows those for any UNet.
    """
    found = families_fitting(adapter)
    spelled = [family for family in found if family.name in _AS_DIFFUSERS]
    return family_of(adapter) or next(iter(spelled), None)


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
