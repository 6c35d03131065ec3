"""An adapter in GGUF: llama.cpp's names, its order of rows, one alpha."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.expert_stacks import Group, factors, grouped, most_frequent, ratio_of
from adaptool.layouts.experts_apart import apart
from adaptool.layouts.plain_deltas import MAGNITUDE, names_of, unheld
from adaptool.layouts.rotary_rows import heads_of, is_turned, one_by_one, paired
from adaptool.layouts.written import as_written
from adaptool.model.adapter import Adapter
from adaptool.model.derived import transposed
from adaptool.model.encoding import Destination, Encoded, Loss, Written, named_once
from adaptool.names.gguf_names import (
    ARCHITECTURES,
    EMBEDDING,
    FUSED,
    Architecture,
    architecture_of,
    gguf_name,
)
from adaptool.store.gguf import encode_gguf

ALPHA = "adapter.lora.alpha"
ARCHITECTURE = "general.architecture"
FILE = "adapter.gguf"
_HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_LAYER = re.compile(r"blk\.(\d+)\.")
# Beyond these a float32 loses digits, or is 0, which llama.cpp takes for scale 1.
_SMALLEST, _LARGEST = 1e-30, 1e30
_MOST_NAMES = 20


def losses(adapter: Adapter) -> tuple[Loss, ...]:
    """What llama.cpp has no slot for: whole tensors, other tuners, biases, DoRA's magnitudes."""
    adapter = apart(adapter)
    magnitudes = [delta for delta in adapter.deltas if MAGNITUDE in delta.roles]
    found = unheld(adapter)
    if not magnitudes:
        return found
    names = tuple(name for delta in magnitudes for name in names_of(delta, {MAGNITUDE}))
    return (*found, Loss(names, "llama.cpp knows no DoRA"))


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """The file; MismatchError where the base's architecture is not known, or a module not in it."""
    architecture = _architecture(adapter, destination)
    adapter = apart(adapter)
    _check_names(adapter, architecture)
    groups = grouped(adapter.deltas, lambda module: _stack(architecture, module))
    alpha = _alpha(groups)
    tensors = [
        tensor for group in groups for tensor in _tensors(group, alpha, architecture, destination)
    ]
    tensors.sort(key=_order)
    entries = [(each.name, each.dtype, each.ref.shape) for each in tensors]
    header, offsets, size = encode_gguf(_fields(adapter, architecture, alpha), entries)
    file = destination.file or FILE
    named_once(file, tensors)
    return Encoded(file, header, tuple(tensors), tuple(offsets), whole=size)


def _order(tensor: Written) -> tuple[int, str]:
    """Layer by layer; what stands outside of them comes first."""
    found = _LAYER.match(tensor.name)
    return (int(found[1]) if found else -1, tensor.name)


def _architecture(adapter: Adapter, destination: Destination) -> Architecture:
    """The base's, else the one that the adapter's own file names."""
    base = destination.base
    found = architecture_of(base.config) if base is not None else None
    if found is None and base is None:
        found = ARCHITECTURES.get(adapter.metadata.get(ARCHITECTURE, ""))
    if found is None:
        message = "llama.cpp's names depend on the architecture of the base, which is not known"
        hint = "--base BASE (only its config is read); known: " + ", ".join(sorted(ARCHITECTURES))
        raise MismatchError(message, code=Code.UNSUPPORTED, file=adapter.name, hint=hint)
    return found


def _check_names(adapter: Adapter, architecture: Architecture) -> None:
    """MismatchError that lists up to 20 modules that have no name."""
    unnamed = [
        delta.module for delta in adapter.deltas if gguf_name(architecture, delta.module) is None
    ]
    if unnamed:
        listed = ", ".join(unnamed[:_MOST_NAMES])
        message = f"{len(unnamed)} modules have no name in {architecture.name}: {listed}"
        raise MismatchError(message, code=Code.LAYOUT_CANNOT_HOLD, file=adapter.name)


def _stack(architecture: Architecture, module: str) -> tuple[str, int] | None:
    """The stack that an expert's projection goes to, and its place there."""
    found = gguf_name(architecture, module)
    if found is None or found[1] is None:
        return None
    return found[0], found[1]


def _alpha(groups: Sequence[Group]) -> float:
    """The one alpha: what most modules have for themselves."""
    alphas = [delta.terms.scaling * group.rank for group in groups for delta in group.present]
    alpha = most_frequent(alphas)
    return alpha if _SMALLEST < abs(alpha) < _LARGEST else 1.0


def _tensors(
    group: Group, alpha: float, architecture: Architecture, destination: Destination
) -> Iterator[Written]:
    deltas = group.present
    ratios = {delta.module: ratio_of(delta.terms.scaling * group.rank, alpha) for delta in deltas}
    a, b = factors(group, group.rank, ratios)
    named = None if group.stacked else gguf_name(architecture, group.name)
    name = group.name if named is None else named[0]
    if name == EMBEDDING:
        a = transposed(a)
    if architecture.permuted and not group.stacked and is_turned(group.name):
        b = paired(b, heads_of(group.name, b, destination.base))
    if architecture.per_head and name.endswith(FUSED):
        b = one_by_one(b, heads_of(group.name, b, destination.base))
    yield as_written(f"{name}.weight.lora_a", a, deltas)
    yield as_written(f"{name}.weight.lora_b", b, deltas)


def _fields(adapter: Adapter, architecture: Architecture, alpha: float) -> dict[str, str | float]:
    fields: dict[str, str | float] = {
        ARCHITECTURE: architecture.name,
        "general.type": "adapter",
        "adapter.type": "lora",
        ALPHA: alpha,
    }
    if adapter.base and _HUB_NAME.fullmatch(adapter.base):
        fields["general.base_model.count"] = 1
        fields["general.base_model.0.repo_url"] = f"https://huggingface.co/{adapter.base}"
    return fields
