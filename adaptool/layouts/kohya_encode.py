"""An adapter in kohya's layout: one file, alphas beside the factors, hashes in the metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adaptool.layouts.kohya_factors import INPUT_NORM
from adaptool.layouts.kohya_homes import family_for, homes
from adaptool.layouts.kohya_metadata import kept, with_hashes
from adaptool.layouts.seated import (
    SHIFT,
    Group,
    factored,
    groups,
    losses_of,
    pair_in,
    stored_dtype,
)
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import F32, constant, reshaped, scaled
from adaptool.model.encoding import Destination, Encoded, Loss, Written, in_safetensors

FILE = "lora.safetensors"
# What sd-scripts says a file was trained on, by which others tell the architecture.
_VERSIONS = {"sdxl": "sdxl_base_v1-0", "flux": "flux1"}


def losses(adapter: Adapter) -> tuple[Loss, ...]:
    """Other tuners, plain differences, whole tensors, modules of no known pipeline."""

    def reason(delta: Delta) -> str:
        return "a plain difference is none of kohya's kinds" if delta.tuner == SHIFT else ""

    return losses_of(adapter, homes(adapter), reason)


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """Names, alphas and metadata as sd-scripts writes them; MismatchError where parts do not fit.

    A directory gets the one file `lora.safetensors`.
    """
    tensors = [
        tensor
        for group in groups(factored(adapter), homes(adapter).found)
        for tensor in _written(group, bake=destination.bake)
    ]
    file = destination.file or FILE
    metadata = with_hashes(file, tensors, _metadata(adapter))
    return in_safetensors(file, tensors, metadata)


def _metadata(adapter: Adapter) -> dict[str, str]:
    """What the file brought along where it still holds, and what readers expect of any."""
    ranks = {str(delta.terms.rank) for delta in adapter.deltas}
    alphas = {_alpha_text(delta) for delta in adapter.deltas}
    brought = kept(adapter.metadata)
    for name, values in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        if not values & {brought.get(name, ""), brought.get(name, "").removesuffix(".0")}:
            brought[name] = values.pop() if len(values) == 1 else "Dynamic"
    made = {"format": "pt", "ss_network_module": "networks.lora"}
    family = family_for(adapter)
    if family is not None and family.name in _VERSIONS:
        made["ss_base_model_version"] = _VERSIONS[family.name]
    return made | brought


def _alpha_text(delta: Delta) -> str:
    return f"{delta.terms.scaling * (delta.terms.rank or 1):g}"


def _written(group: Group, *, bake: bool) -> Iterator[Written]:
    pair = pair_in(group)
    if bake:
        pair = replace(pair, b=scaled(pair.b, pair.scaling), scaling=1.0)
    dtype = next((delta.dtype for delta in group.present if delta.dtype), None)
    yield Written(f"{group.name}.lora_down.weight", pair.a, stored_dtype(pair.a, dtype))
    up = stored_dtype(pair.b, None if bake else dtype)
    yield Written(f"{group.name}.lora_up.weight", pair.b, up)
    alpha = constant(f"{group.name}.alpha", [pair.scaling * pair.rank])
    yield Written(f"{group.name}.alpha", alpha, F32)
    if pair.magnitude is not None:
        count, ones = pair.magnitude.elements, (1,) * len(pair.a.shape[2:])
        by_input = group.present[0].tuner == INPUT_NORM
        shape = (1, count, *ones) if by_input else (count, 1, *ones)
        scale = reshaped(pair.magnitude, shape)
        yield Written(f"{group.name}.dora_scale", scale, stored_dtype(scale, dtype))
