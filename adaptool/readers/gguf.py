"""How llama.cpp reads a LoRA in GGUF: pairs by the name of a tensor of the model.

A pair belongs to the tensor that its name begins with, which the model must have; the embedding's A
stands as (vocab, r). One alpha over a tensor's rank is its scale, and an alpha of 0 is scale 1. Any
other tensor than a pair's stops it. Experts stand in one stack for each projection.
Source: llama.cpp of November 2026, src/llama-adapter.cpp and src/llama-adapter.h.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from adaptool.names.gguf_names import (
    ARCHITECTURES,
    EMBEDDING,
    Architecture,
    architecture_of,
    gguf_name,
)
from adaptool.readers.values import Applied, File, Loaded, Refusal

PROGRAM = "llama.cpp"
_ENDINGS = {".weight.lora_a": "a", ".weight.lora_b": "b"}
_FLOAT32, _STRING = 6, 8
# A parameter that holds all experts of one or two projections.
_STACKS: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
    "gate_proj": ("gate_proj",),
}


def read(file: File) -> Loaded:
    """What llama.cpp does with the file."""
    name = _field(file.header, "general.architecture")
    architecture = ARCHITECTURES.get(str(name))
    if architecture is None:
        return Loaded((), refused=(Refusal(f"it is of the architecture {name!r}"),))
    wanted = architecture_of(file.base.config) if file.base is not None else None
    if wanted is not None and wanted.name != architecture.name:
        why = f"its architecture is {name!r}, the model's is {wanted.name!r}"
        return Loaded((), refused=(Refusal(why),))
    pairs, others = _pairs(file)
    alpha = _field(file.header, "adapter.lora.alpha")
    parameters = _parameters(file, architecture)
    applied = [
        each
        for tensor, pair in pairs.items()
        for each in _applied(file, tensor, pair, float(alpha or 0.0), parameters)
    ]
    refused = [Refusal("it is neither lora_a nor lora_b", name) for name in others]
    refused += [
        Refusal("its other half is missing", next(iter(pair.values())))
        for pair in pairs.values()
        if len(pair) < len(_ENDINGS)
    ]
    unread = [
        name for tensor in pairs if tensor not in parameters for name in pairs[tensor].values()
    ]
    return Loaded(tuple(applied), unread=tuple(unread), refused=tuple(refused))


def _field(header: bytes, key: str) -> str | float | None:
    """A string or a float32 among the key-value pairs; None where the key is not there."""
    at = header.find(struct.pack("<Q", len(key)) + key.encode())
    if at < 0:
        return None
    at += 8 + len(key)
    (kind,) = struct.unpack_from("<I", header, at)
    if kind == _FLOAT32:
        return float(struct.unpack_from("<f", header, at + 4)[0])
    (length,) = struct.unpack_from("<Q", header, at + 4)
    return header[at + 12 : at + 12 + length].decode() if kind == _STRING else None


def _pairs(file: File) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The factors' names by the tensor that they change, and what is no factor."""
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    others = []
    for name in file.tensors:
        ending = next((each for each in _ENDINGS if name.endswith(each)), None)
        if ending is None:
            others.append(name)
        else:
            pairs[name.removesuffix(ending)][_ENDINGS[ending]] = name
    return pairs, others


def _parameters(file: File, architecture: Architecture) -> Mapping[str, Sequence[str]]:
    """The adapter's parameters by the tensor of the model that they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for parameter in sorted(file.parameters):
        module, _, leaf = parameter.rpartition(".")
        modules = [f"{module}.0.{name}" for name in _STACKS.get(leaf, ())]
        for each in [module] if leaf == "weight" else modules:
            tensor = gguf_name(architecture, each)
            if tensor is not None:
                found[tensor[0]].append(parameter)
    return found


def _applied(
    file: File,
    tensor: str,
    pair: Mapping[str, str],
    alpha: float,
    parameters: Mapping[str, Sequence[str]],
) -> Iterator[Applied]:
    if len(pair) < len(_ENDINGS):
        return
    a, b = file.shape(pair["a"]), file.shape(pair["b"])
    rank = b[-1]
    inner = a[0] if tensor == EMBEDDING else a[-1]
    scale = alpha / rank if alpha else 1.0
    for parameter in parameters.get(tensor, ()):
        whole = parameter.endswith(".weight")
        shape = (b[-2], inner) if whole else ()
        yield Applied(parameter, "lora", (pair["a"], pair["b"]), shape, rank, scale)
