"""LoRA in GGUF, as llama.cpp, Ollama and LM Studio load it.

A tensor `blk.3.attn_q.weight.lora_a` is A (r, in), `.lora_b` is B (out, r); experts are stacked,
(experts, r, in) and (experts, out, r). The embedding's A stands as (vocab, r). The scale is
`adapter.lora.alpha` over the rank of each tensor; alpha 0 (or none) is scale 1. In the family of
llama the rows of q and k stand in another order than in transformers.
Source: llama.cpp, src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from adaptool.errors import AdaptoolError, InputError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.gguf_encode import ALPHA, ARCHITECTURE, encode, losses
from adaptool.layouts.kohya_keys import may_drop, refuse_leftover
from adaptool.layouts.plain_deltas import lora_delta, matrix, missing_partner, slice_of
from adaptool.layouts.rotary_rows import halved, heads_of, is_turned, per_head
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import transposed
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names.gguf_names import (
    ARCHITECTURES,
    EMBEDDING,
    FUSED,
    Architecture,
    architecture_of,
    module_path,
)
from adaptool.store.adapter_files import GGUF, AdapterFiles
from adaptool.store.tensors import TensorRef

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "GGUF"
DETECT = "a file that begins with GGUF and says `general.type` adapter"
LOSSY = (
    "one alpha for all modules: other scales are multiplied into lora_b; DoRA, biases, whole "
    "tensors and convolutions have no place in it"
)
_ENDINGS = {".weight.lora_a": "a", ".weight.lora_b": "b"}
_INVOCATION = "adapter.alora.invocation_tokens"
_HUB = "https://huggingface.co/"


def sniff(files: AdapterFiles) -> Evidence:
    """All tensors of a GGUF file but those that llama.cpp passes over."""
    if files.container != GGUF:
        return Evidence(0, tuple(files.tensors), "no GGUF file")
    _, leftover = _grouped(files.tensors)
    unclaimed = tuple(ref.name for ref in leftover)
    # Whatever else a GGUF file is, no other layout has a word for it.
    return Evidence(len(files.tensors), unclaimed, "a GGUF file")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself, MismatchError where it is none."""
    architecture = _architecture(files, reading)
    alpha = _alpha(files)
    pairs, leftover = _grouped(files.tensors)
    dropped = [ref for ref in leftover if may_drop(ref.name, reading)]
    refuse_leftover([ref for ref in leftover if ref not in dropped], files, TITLE)
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    for name, pair in pairs.items():
        try:
            deltas += _of_tensor(name, pair, alpha, architecture, reading)
        except AdaptoolError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return Adapter(
        name=files.name,
        layout="gguf",
        config={},
        deltas=tuple(deltas),
        replaced=(),
        leftover=(),
        tensors=files.tensors,
        findings=(),
        base=_base(files),
        dropped=tuple(ref.name for ref in dropped),
        metadata=files.header.metadata,
    )


def _architecture(files: AdapterFiles, reading: Reading) -> Architecture:
    """What names and row orders mean; MismatchError where that is not known."""
    said = files.header.metadata
    kind, tuner = said.get("general.type"), said.get("adapter.type")
    if (kind, tuner) != ("adapter", "lora"):
        message = f"general.type is {kind!r}, adapter.type {tuner!r}: a GGUF file, but no LoRA"
        hint = "a model in GGUF is no base here: use the checkpoint that it was made of"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=files.source.name, hint=hint)
    if _INVOCATION in said:
        message = "an activated LoRA acts on some tokens only; no weight can hold it"
        raise MismatchError(
            message, code=Code.TUNER_UNSUPPORTED, file=files.source.name, field=_INVOCATION
        )
    name = said.get(ARCHITECTURE, "")
    if name not in ARCHITECTURES:
        message = f"is {name!r}; known are {', '.join(sorted(ARCHITECTURES))}"
        raise MismatchError(
            message, code=Code.UNSUPPORTED, file=files.source.name, field=ARCHITECTURE
        )
    wanted = architecture_of(reading.base.config) if reading.base is not None else None
    if wanted is not None and wanted.name != name:
        message = f"is {name!r}, the base is {wanted.name!r}"
        raise MismatchError(
            message, code=Code.BASE_NAME_DIFFERS, file=files.source.name, field=ARCHITECTURE
        )
    return ARCHITECTURES[name]


def _alpha(files: AdapterFiles) -> float:
    """`adapter.lora.alpha`; 0 where it is absent. InputError where it is no finite number."""
    text = files.header.metadata.get(ALPHA, "0")
    try:
        alpha = json.loads(text)
    except ValueError:
        alpha = None
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        message = f"is {text}, must be a finite number"
        raise InputError(message, code=Code.FIELD_VALUE, file=files.source.name, field=ALPHA)
    return float(alpha)


def _base(files: AdapterFiles) -> str | None:
    address = files.header.metadata.get("general.base_model.0.repo_url", "")
    return address.removeprefix(_HUB) if address.startswith(_HUB) else None


def _grouped(
    tensors: Mapping[str, TensorRef],
) -> tuple[dict[str, dict[str, TensorRef]], list[TensorRef]]:
    """The factors by the name of the tensor that they change, and what is none."""
    pairs: dict[str, dict[str, TensorRef]] = {}
    leftover = []
    for key, ref in tensors.items():
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        if ending is None:
            leftover.append(ref)
        else:
            pairs.setdefault(key.removesuffix(ending), {})[_ENDINGS[ending]] = ref
    return pairs, leftover


def _of_tensor(
    name: str,
    pair: Mapping[str, TensorRef],
    alpha: float,
    architecture: Architecture,
    reading: Reading,
) -> Iterator[Delta]:
    """The deltas of one stored pair: one, or one an expert."""
    for here, there in (("a", "b"), ("b", "a")):
        if there not in pair:
            raise missing_partner(pair[here], f"{name}.weight.lora_{there}")
    a, b = pair["a"], pair["b"]
    scaling = _scaling(alpha, b)
    if len(b.shape) == 3 and len(a.shape) == 3 and a.shape[0] == b.shape[0]:
        for place in range(b.shape[0]):
            module = _module(architecture, name, a, place)
            roles = {"A": slice_of(a, place), "B": slice_of(b, place)}
            yield lora_delta(module, roles, scaling, alpha or None)
        return
    module = _module(architecture, name, a)
    if name == EMBEDDING:
        roles = {"embedding_A": transposed(matrix(a)), "embedding_B": matrix(b)}
    else:
        roles = {"A": matrix(a), "B": matrix(b)}
        if reading.as_stored:
            pass  # nothing is computed, so the rows may stay in their order
        elif architecture.permuted and is_turned(module):
            roles["B"] = halved(b, heads_of(module, b, reading.base))
        elif architecture.per_head and name.endswith(FUSED):
            roles["B"] = per_head(b, heads_of(module, b, reading.base))
    yield lora_delta(module, roles, scaling, alpha or None)


def _scaling(alpha: float, b: TensorRef) -> float:
    """Alpha over the last axis of lora_b; 1 where alpha is 0."""
    rank = b.shape[-1] if b.shape else 0
    return alpha / rank if alpha and rank else 1.0


def _module(
    architecture: Architecture, name: str, ref: TensorRef, expert: int | None = None
) -> str:
    found = module_path(architecture, name, expert)
    if found is None:
        message = f"no module of {architecture.name} is called {name!r} by llama.cpp"
        raise MismatchError(message, code=Code.KEYS_UNRECOGNISED, file=ref.file, tensor=ref.name)
    return found
