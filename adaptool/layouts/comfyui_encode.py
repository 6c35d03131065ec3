"""An adapter under the names of the published checkpoint, as ComfyUI looks them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adaptool.layouts.kohya_factors import INPUT_NORM
from adaptool.layouts.pipeline_homes import Home, Homes, homes_of
from adaptool.layouts.pipeline_names import DENOISERS, bare, clip_of, component_of
from adaptool.layouts.seated import (
    SHIFT,
    Group,
    brought,
    factored,
    groups,
    losses_of,
    pair_in,
    shifts,
    stored_dtype,
)
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import F32, constant, joined, reshaped, scaled, zeros
from adaptool.model.encoding import Destination, Encoded, Loss, Written, in_safetensors
from adaptool.model.fusing import Pair, taken_rows
from adaptool.names import text_encoders
from adaptool.names.diffusion import Family
from adaptool.store.tensors import TensorRef

FILE = "lora.safetensors"


def losses(adapter: Adapter) -> tuple[Loss, ...]:
    """Other tuners, whole tensors, modules of models whose checkpoint's names are not known."""

    def reason(delta: Delta) -> str:
        if delta.tuner == SHIFT and delta.parameter.rpartition(".")[2] not in _LEAVES:
            return "a shift of another parameter than weight and bias"
        return ""

    return losses_of(adapter, _homes(adapter), reason)


_LEAVES = {"weight": "diff", "bias": "diff_b"}


def _homes(adapter: Adapter) -> Homes:
    same = adapter.layout == "comfyui"
    return homes_of(adapter, lambda delta, family: _home(delta, family, same=same))


def _home(delta: Delta, family: Family | None, *, same: bool) -> Home | None:
    """None where nobody knows; `same`: what has no table keeps the name it came with."""
    module = delta.module
    component, path = component_of(module, family), bare(module)
    if module.startswith("text_encoders."):
        clip, _, rest = module.removeprefix("text_encoders.").partition(".")
        return Home(f"text_encoders.{clip}.transformer.{rest}")
    if component is None:
        return None
    if component not in DENOISERS:
        clip_name = clip_of(component, family, path, delta.terms.inner)
        stored = text_encoders.comfyui_path(path)
        return Home(f"text_encoders.{clip_name}.transformer.{stored}") if clip_name else None
    seat = family.by_module(path) if family else None
    if seat is None:
        return Home(f"diffusion_model.{path}") if same and family is None else None
    return Home(f"diffusion_model.{seat.original}", seat, seat.modules.index(path))


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """`lora_A`, `lora_B` where alpha is the rank everywhere; else with alphas, and kohya's endings.

    A directory gets the one file `lora.safetensors`.
    """
    homes = _homes(adapter).found
    pairs = [(group, pair_in(group)) for group in groups(factored(adapter), homes)]
    if destination.bake:
        pairs = [(group, _baked(pair)) for group, pair in pairs]
    plain = all(pair.scaling == 1.0 for _, pair in pairs)
    tensors = [each for group, pair in pairs for each in _factors(group, pair, plain=plain)]
    for leaf, ending in _LEAVES.items():
        for group in groups(shifts(adapter, leaf), homes):
            value = _difference(group)
            dtype = stored_dtype(value, group.present[0].dtype)
            tensors.append(Written(f"{group.name}.{ending}", value, dtype))
    metadata = {"format": "pt", **brought(adapter)}
    return in_safetensors(destination.file or FILE, tensors, metadata)


def _baked(pair: Pair) -> Pair:
    return replace(pair, b=scaled(pair.b, pair.scaling), scaling=1.0)


def _factors(group: Group, pair: Pair, *, plain: bool) -> Iterator[Written]:
    dtype = next((delta.dtype for delta in group.present if delta.dtype), None)
    down, up = ("lora_A", "lora_B") if plain else ("lora_down", "lora_up")
    yield Written(f"{group.name}.{down}.weight", pair.a, stored_dtype(pair.a, dtype))
    yield Written(f"{group.name}.{up}.weight", pair.b, stored_dtype(pair.b, dtype))
    if not plain:
        alpha = constant(f"{group.name}.alpha", [pair.scaling * pair.rank])
        yield Written(f"{group.name}.alpha", alpha, F32)
    if pair.magnitude is not None:
        count, ones = pair.magnitude.elements, (1,) * len(pair.a.shape[2:])
        by_input = group.present[0].tuner == INPUT_NORM
        shape = (1, count, *ones) if by_input else (count, 1, *ones)
        scale = reshaped(pair.magnitude, shape)
        yield Written(f"{group.name}.dora_scale", scale, stored_dtype(scale, dtype))


def _difference(group: Group) -> TensorRef:
    """The stored module's difference, at scale 1; zeros for parts that have none."""
    values = [None if delta is None else _unscaled(delta) for delta in group.deltas]
    seat = group.seat
    if seat is None:
        return next(value for value in values if value is not None)
    present = next(value for value in values if value is not None)
    unit = next(
        value.shape[0] // share
        for value, share in zip(values, seat.rule.shares, strict=True)
        if value is not None
    )
    whole = joined(
        [
            zeros(present.name, present.dtype, (unit * share, *present.shape[1:]))
            if value is None
            else value
            for value, share in zip(values, seat.rule.shares, strict=True)
        ],
        0,
    )
    # Halves that change places do so both ways alike.
    inner = present.shape[1] if len(present.shape) > 1 else None
    rows = seat.rows(whole.shape[0], inner)
    return whole if seat.fused else taken_rows(whole, rows[0])


def _unscaled(delta: Delta) -> TensorRef:
    """The difference with its scaling in it."""
    return scaled(delta.roles["difference"], delta.terms.scaling)
