"""An adapter as diffusers saves it: PEFT's endings below components, their configs as metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from adaptool.layouts.kohya_factors import INPUT_NORM, OUTPUT_NORM
from adaptool.layouts.partly_dora import partly_dora
from adaptool.layouts.peft_encode import config_of
from adaptool.layouts.pipeline_homes import Home, Homes, homes_of
from adaptool.layouts.pipeline_names import DENOISERS, bare, component_of
from adaptool.layouts.seated import (
    SHIFT,
    brought,
    factored,
    losses_of,
    shifts,
    stored_dtype,
)
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import scaled
from adaptool.model.encoding import Destination, Encoded, Loss, Written, in_safetensors
from adaptool.names.architectures import knowing
from adaptool.names.diffusion import Family
from adaptool.store.adapter_files import DIFFUSERS_FILE, METADATA_KEYS
from adaptool.store.documents import encode_json

# Layouts that have a checkpoint's names, which diffusers may call otherwise.
_OF_CHECKPOINTS = frozenset({"bfl", "comfyui", "xlabs"})
# transformers 5 has no `text_model` in CLIP; without it a name is found in older releases too.
_CLIP = "text_model."
# What of a LoRA config decides the effect; diffusers hands all of it to PEFT's LoraConfig.
_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")


def losses(adapter: Adapter) -> tuple[Loss, ...]:
    """Other tuners, whole tensors, modules of no pipeline, differences that no factors scale."""
    scalings = {delta.module: delta.terms.scaling for delta in factored(adapter)}

    def reason(delta: Delta) -> str:
        if delta.tuner == INPUT_NORM:
            return "diffusers' DoRA has its norms over inputs, not over outputs"
        if delta.tuner != SHIFT:
            return ""
        if delta.parameter != f"{delta.module}.bias":
            return "a difference of the whole weight is no pair of factors"
        return "" if scalings.get(delta.module) else "a bias alone has no place"

    homes = _homes(adapter)
    placed = replace(adapter, deltas=tuple(d for d in adapter.deltas if d.module in homes.found))
    parts = partly_dora(placed, lambda delta: homes.found[delta.module].name.partition(".")[0])
    return (*losses_of(adapter, homes, reason), *parts)


def _homes(adapter: Adapter) -> Homes:
    named = adapter.layout not in _OF_CHECKPOINTS
    return homes_of(adapter, lambda delta, family: _home(delta, family, named=named))


def _home(delta: Delta, family: Family | None, *, named: bool) -> Home | None:
    """`named`: whether a module that nobody knows has diffusers' name, and its component's."""
    component, path = component_of(delta.module, family), bare(delta.module)
    if component is None or (component in DENOISERS and not named and not knowing(path)):
        return None
    return Home(f"{component}.{path}")


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """Keys as `save_lora_weights` writes them, and the metadata it is given by trainers."""
    homes = _homes(adapter).found
    bake = destination.bake
    scalings = {delta.module: delta.terms.scaling for delta in factored(adapter)}
    tensors = [
        tensor
        for delta in factored(adapter)
        for tensor in _factors(delta, homes[delta.module].name, bake=bake)
    ]
    for delta in shifts(adapter, "bias"):
        divisor = 1.0 if bake else scalings[delta.module]
        value = scaled(delta.roles["difference"], delta.terms.scaling / divisor)
        dtype = stored_dtype(value, delta.dtype)
        tensors.append(Written(f"{homes[delta.module].name}.lora_B.bias", value, dtype))
    metadata = {"format": "pt", **brought(adapter)}
    if not bake or _has_dora(adapter):
        packed = encode_json(_packed(adapter, homes, bake=bake)).decode()
        metadata[METADATA_KEYS[1]] = packed
    return in_safetensors(destination.file or DIFFUSERS_FILE, tensors, metadata)


def _has_dora(adapter: Adapter) -> bool:
    return any(delta.tuner == OUTPUT_NORM for delta in adapter.deltas)


def _factors(delta: Delta, name: str, *, bake: bool) -> Iterator[Written]:
    a, b = delta.roles["A"], delta.roles["B"]
    if bake:
        b = scaled(b, delta.terms.scaling)
    yield Written(f"{name}.lora_A.weight", a, stored_dtype(a, delta.dtype))
    yield Written(f"{name}.lora_B.weight", b, stored_dtype(b, None if bake else delta.dtype))
    magnitude = delta.roles.get("magnitude")
    if magnitude is not None:
        dtype = stored_dtype(magnitude, delta.dtype)
        yield Written(f"{name}.lora_magnitude_vector", magnitude, dtype)


def _packed(adapter: Adapter, homes: Mapping[str, Home], *, bake: bool) -> dict[str, Any]:
    """`<component>.<field>` for each component, as diffusers packs its LoRA configs."""
    by_component: dict[str, list[Delta]] = {}
    for delta in factored(adapter):
        by_component.setdefault(homes[delta.module].name.partition(".")[0], []).append(delta)
    biased = {homes[delta.module].name.partition(".")[0] for delta in shifts(adapter, "bias")}
    packed: dict[str, Any] = {}
    for component, deltas in by_component.items():
        fields = _fields(adapter, deltas, bake=bake) | {"lora_bias": component in biased}
        packed |= {f"{component}.{name}": value for name, value in fields.items()}
    return packed


def _path(module: str) -> str:
    return bare(module).removeprefix(_CLIP)


def _fields(adapter: Adapter, deltas: list[Delta], *, bake: bool) -> dict[str, Any]:
    local = [
        replace(delta, module=_path(delta.module), parameter=_path(delta.parameter))
        for delta in deltas
    ]
    config = config_of(replace(adapter, config={}, deltas=tuple(local)), bake=bake)
    modules = sorted(delta.module for delta in local)
    return {name: config[name] for name in _FIELDS} | {"target_modules": modules}
