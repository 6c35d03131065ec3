"""An adapter in MLX-LM's layout: one rank, one scale, factors the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.expert_stacks import Group, factors, grouped, most_frequent, ratio_of
from adaptool.layouts.experts_apart import apart
from adaptool.layouts.plain_deltas import EMBEDDING, MAGNITUDE, names_of, unheld
from adaptool.layouts.written import as_written
from adaptool.model.adapter import Adapter, Delta, Form, Replaced
from adaptool.model.derived import reshaped, transposed
from adaptool.model.encoding import Destination, Encoded, Loss, Written, in_safetensors
from adaptool.model.plan import Document
from adaptool.names.families import TRANSPOSED_EXPERTS, model_types
from adaptool.names.mlx_names import mlx_module, mlx_type
from adaptool.store.adapter_files import CONFIG_FILE, METADATA_KEYS, MLX_FILE
from adaptool.store.documents import encode_json

_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.\d+\.(.+)")
# Modules of diffusers' pipelines: named after a component, or in layers of another name.
_PIPELINE = re.compile(r"(unet|denoiser|text_encoder(_\d)?)\.|(.+\.)?[a-z_]+_blocks\.\d")
# Every layer: one whose modules have no factors gets factors of zeros there.
ALL_LAYERS = -1


def losses(adapter: Adapter) -> tuple[Loss, ...]:
    """Whole tensors beside factors, other tuners, biases; magnitudes where not all have one."""
    if not adapter.deltas:
        return unheld(adapter, holds=_is_whole)
    adapter = apart(adapter)
    found = (*unheld(adapter), *_of_pipelines(adapter))
    with_magnitude = [delta for delta in adapter.deltas if MAGNITUDE in delta.roles]
    plain = len(with_magnitude) < len(adapter.deltas)
    lost = [delta for delta in with_magnitude if plain or not _may_have_magnitude(delta)]
    if not lost:
        return found
    names = tuple(name for delta in lost for name in names_of(delta, {MAGNITUDE}))
    return (*found, Loss(names, "DoRA is for all modules or none, and for linear layers alone"))


def _of_pipelines(adapter: Adapter) -> Iterator[Loss]:
    """What belongs to an image model: MLX-LM runs language models."""
    for delta in adapter.deltas:
        if _PIPELINE.match(delta.module):
            yield Loss(names_of(delta), f"{delta.module} is no module of a language model")


def _is_whole(item: Replaced) -> bool:
    return item.rows is None and not item.copied_base


def _may_have_magnitude(delta: Delta) -> bool:
    return _stack(None, delta.module) is None and not EMBEDDING & delta.roles.keys()


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """adapters.safetensors and its config; as a single file, the config in the metadata."""
    types = model_types(destination.base.config if destination.base is not None else None)
    adapter = _taken_apart(adapter, types)
    kind = mlx_type(types)
    _check_model(adapter, types, kind)
    deltas = [_named(delta, kind) for delta in adapter.deltas]
    groups = grouped(deltas, lambda module: _stack(kind, module))
    scale = most_frequent([delta.terms.scaling for delta in adapter.deltas] or [1.0])
    rank = max((group.rank for group in groups), default=0)
    tensors = [tensor for group in groups for tensor in _tensors(group, rank, scale)]
    tensors += [Written(item.parameter, item.value, item.value.dtype) for item in adapter.replaced]
    config = encode_json(_config(adapter, groups, rank, scale))
    if destination.file is not None:
        metadata = {METADATA_KEYS[0]: config.decode(), "format": "mlx"}
        return in_safetensors(destination.file, tensors, metadata)
    document = Document(CONFIG_FILE, content=config)
    return in_safetensors(MLX_FILE, tensors, {"format": "mlx"}, (document,))


def _taken_apart(adapter: Adapter, types: Sequence[str]) -> Adapter:
    """PEFT's stacks of experts one by one; MismatchError where they may lie the other way round."""
    stacks = [delta for delta in adapter.deltas if delta.terms.form is Form.EXPERTS]
    if not stacks:
        return adapter
    if types and not TRANSPOSED_EXPERTS & set(types):
        return apart(adapter, types)
    message = f"{len(stacks)} stacks of experts, whose order of axes the base's family decides"
    hint = "--base BASE (only its config is read)" if not types else "adaptool merge holds it"
    raise MismatchError(
        message,
        code=Code.LAYOUT_CANNOT_HOLD,
        file=adapter.name,
        tensor=stacks[0].parameter,
        hint=hint,
    )


def _check_model(adapter: Adapter, types: Sequence[str], kind: str | None) -> None:
    """MismatchError where MLX-LM has no such model, or its model lacks modules."""
    if types and kind is None:
        message = f"MLX-LM has no model of type {types[0]}"
        raise MismatchError(message, code=Code.LAYOUT_CANNOT_HOLD, file=adapter.name)
    lacking = [delta.module for delta in adapter.deltas if mlx_module(kind, delta.module) is None]
    if lacking:
        message = f"MLX-LM's model has none of {len(lacking)} modules: {', '.join(lacking[:5])}"
        raise MismatchError(
            message,
            code=Code.LAYOUT_CANNOT_HOLD,
            file=adapter.name,
            tensor=lacking[0],
            hint="adaptool merge BASE ADAPTER OUT holds everything",
        )


def _named(delta: Delta, kind: str | None) -> Delta:
    """The delta under MLX-LM's name; an expert keeps its own, which says its place."""
    found = mlx_module(kind, delta.module)
    if found is None or found.expert is not None:
        return delta
    return replace(delta, module=found.path)


def _stack(kind: str | None, module: str) -> tuple[str, int] | None:
    found = mlx_module(kind, module)
    return (found.path, found.expert) if found is not None and found.expert is not None else None


def _tensors(group: Group, rank: int, scale: float) -> Iterator[Written]:
    ratios = {delta.module: ratio_of(delta.terms.scaling, scale) for delta in group.present}
    a, b = factors(group, rank, ratios)
    deltas = group.present
    if not group.stacked:
        a, b = transposed(a), transposed(b)
    yield as_written(f"{group.name}.lora_a", a, deltas)
    yield as_written(f"{group.name}.lora_b", b, deltas)
    magnitude = deltas[0].roles.get(MAGNITUDE)
    if magnitude is not None:
        flat = reshaped(magnitude, (magnitude.elements,))
        yield as_written(f"{group.name}.m", flat, deltas)


def _config(adapter: Adapter, groups: Sequence[Group], rank: int, scale: float) -> dict[str, Any]:
    """What mlx-lm needs to make the modules, and the base that it was trained on."""
    base = {"model": adapter.base} if adapter.base else {}
    if not groups:
        return {**base, "fine_tune_type": "full", "num_layers": ALL_LAYERS}
    dora = any(MAGNITUDE in delta.roles for delta in adapter.deltas)
    return {
        **base,
        "fine_tune_type": "dora" if dora else "lora",
        "lora_parameters": {
            "dropout": 0.0,
            "keys": sorted({_key(group.name) for group in groups}),
            "rank": rank,
            "scale": scale,
        },
        "num_layers": ALL_LAYERS,
    }


def _key(module: str) -> str:
    """The path inside a layer; of what stands in none, the whole."""
    found = _LAYER.fullmatch(module)
    return found[1] if found else module
