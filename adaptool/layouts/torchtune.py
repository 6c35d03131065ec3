"""torchtune's layout: `layers.3.attn.q_proj.lora_a.weight`, in Meta's names and order of rows.

A is (r, in), B (out, r), DoRA's `magnitude` (out). For the families whose checkpoints torchtune
turns, the rows of q and k put rotary pairs side by side. Alpha stands in the recipe only.
Source: torchtune 0.6.1, models/convert_weights.py, models/{gemma,qwen2}/_convert_weights.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.pairs import Roles, adapter_of, paired
from adaptool.layouts.plain_deltas import lora_delta, matrix
from adaptool.layouts.rotary_rows import halved, heads_of, is_turned
from adaptool.layouts.told_scale import told_scaling
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import reshaped
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names.families import model_types
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

TITLE = "torchtune"
DETECT = "keys `layers.N.attn.q_proj.lora_a.weight`, `.lora_b.weight`"
LOSSY = ""
_ENDINGS = {".lora_a.weight": "A", ".lora_b.weight": "B", ".magnitude": "magnitude"}
_MODULE = re.compile(r"layers\.(\d{1,6})\.(.+)")
_INSIDE: Mapping[str, str] = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_TURNED = frozenset({"llama", "mistral", "gemma", "gemma2"})
_AS_THEY_ARE = frozenset({"qwen2", "qwen3"})


def _module(name: str) -> str | None:
    if name == "output":
        return "lm_head"
    found = _MODULE.fullmatch(name)
    inside = _INSIDE.get(found[2]) if found else None
    return None if found is None or inside is None else f"model.layers.{found[1]}.{inside}"


def sniff(files: AdapterFiles) -> Evidence:
    """torchtune's are `lora_a.weight` and `lora_b.weight` of its own module names."""
    found = paired(files.tensors, _ENDINGS, lambda name: _module(name) is not None)
    unclaimed = tuple(ref.name for ref in found.leftover)
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{claimed} keys name torchtune's modules")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; MismatchError where only the base can say how the rows of q and k lie."""

    def make(name: str, roles: Roles) -> Iterator[Delta]:
        a, b = matrix(roles["A"]), matrix(roles["B"])
        module = _module(name) or name
        factors = {"A": a, "B": b}
        if "magnitude" in roles:
            factors["magnitude"] = roles["magnitude"]
        if is_turned(module) and _is_turned_family(b, reading):
            heads = heads_of(module, b, reading.base)
            factors["B"] = halved(b, heads)
            if "magnitude" in roles and roles["magnitude"].elements == b.shape[0]:
                factors["magnitude"] = _halved_vector(roles["magnitude"], heads)
        yield lora_delta(module, factors, told_scaling(files, reading, a.shape[0] or 1))

    found = paired(files.tensors, _ENDINGS, lambda name: _module(name) is not None)
    return adapter_of(files, reading, found, make, layout="torchtune")


def _halved_vector(ref: TensorRef, heads: int) -> TensorRef:
    """One number for each row, in the order that the rows get."""
    return reshaped(halved(reshaped(ref, (ref.elements, 1)), heads), (ref.elements,))


def _is_turned_family(b: TensorRef, reading: Reading) -> bool:
    """Whether torchtune turned the rows of this base's q and k; MismatchError for a stranger."""
    types = model_types(reading.base.config if reading.base is not None else None)
    if any(name in _TURNED for name in types):
        return True
    if any(name in _AS_THEY_ARE for name in types):
        return False
    message = "the order of its rows depends on the base's family" + (
        f"; {types[0]} is not known" if types else ""
    )
    known = ", ".join(sorted(_TURNED | _AS_THEY_ARE))
    hint = f"--base BASE (only its config is read); known: {known}"
    raise MismatchError(message, code=Code.UNSUPPORTED, file=b.file, tensor=b.name, hint=hint)
