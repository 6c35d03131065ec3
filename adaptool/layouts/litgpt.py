"""LitGPT's layout: `transformer.h.3.attn.qkv.lora_A`, q, k and v in one pair of factors.

A (k r, in) holds the A's of the k trained projections and B their B's one below the other, whose
heights follow from the base's heads. Neither alpha nor which are trained stands in the file; two
are q and v, which is LitGPT's default. The rows are in transformers' order.
Source: litgpt 0.5.13, lora.py (LoRAQKVLinear) and scripts/convert_lit_checkpoint.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.pairs import Roles, adapter_of, paired
from adaptool.layouts.plain_deltas import lora_delta, matrix
from adaptool.layouts.rotary_rows import head_counts
from adaptool.layouts.told_scale import told_scaling
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import taken
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.model.view import Span
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

TITLE = "LitGPT"
DETECT = "keys `transformer.h.N.attn.qkv.lora_A`, `.attn.proj`, `.mlp.fc_1`, `.mlp.fc_2`"
LOSSY = ""
_ENDINGS = {".lora_A": "A", ".lora_B": "B"}
_MODULE = re.compile(
    r"transformer\.h\.(\d{1,6})\.(attn\.qkv|attn\.attn|attn\.proj|mlp\.fc_1|mlp\.fc_2|mlp\.proj)"
)
_FUSED = frozenset({"attn.qkv", "attn.attn"})
_NAMES: Mapping[str, str] = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
_BY_COUNT = {1: ("q",), 2: ("q", "v"), 3: ("q", "k", "v")}


def is_litgpt(module: str) -> bool:
    """Whether a module path is one of LitGPT's own names."""
    return _MODULE.fullmatch(module) is not None


def sniff(files: AdapterFiles) -> Evidence:
    """LitGPT's are bare `lora_A` and `lora_B` of its own module names, and of lm_head beside."""
    found = paired(files.tensors, _ENDINGS, _takes)
    own = any(is_litgpt(module) for module in found.modules)
    unclaimed = tuple(ref.name for ref in found.leftover)
    claimed = len(files.tensors) - len(unclaimed) if own else 0
    return Evidence(claimed, unclaimed, f"{claimed} keys name LitGPT's modules")


def _takes(module: str) -> bool:
    return is_litgpt(module) or module == "lm_head"


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; MismatchError where only the base can say how q, k and v lie."""

    def make(name: str, roles: Roles) -> Iterator[Delta]:
        a, b = matrix(roles["A"]), matrix(roles["B"])
        scaling = told_scaling(files, reading, b.shape[1] or 1)
        for module, first, second in _plain(name, a, b, reading):
            yield lora_delta(module, {"A": first, "B": second}, scaling)

    found = paired(files.tensors, _ENDINGS, _takes)
    return adapter_of(files, reading, found, make, layout="litgpt")


def _plain(
    name: str, a: TensorRef, b: TensorRef, reading: Reading
) -> Iterator[tuple[str, TensorRef, TensorRef]]:
    """The modules that one of LitGPT's stands for, with their factors."""
    found = _MODULE.fullmatch(name)
    if found is None:
        yield name, a, b
        return
    layer, path = found.groups()
    if path not in _FUSED:
        yield f"model.layers.{layer}.{_NAMES[path]}", a, b
        return
    rank = b.shape[1]
    parts = _BY_COUNT.get(a.shape[0] // rank if rank else 0, ())
    if len(parts) * rank != a.shape[0] or not parts:
        message = f"lora_A {list(a.shape)} and lora_B {list(b.shape)} are not of q, k and v"
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=a.file, tensor=a.name)
    start = 0
    for place, (part, rows) in enumerate(zip(parts, _heights(parts, b, reading), strict=True)):
        own = taken(a, Span(place * rank, rank), 0)
        yield f"model.layers.{layer}.self_attn.{part}_proj", own, taken(b, Span(start, rows), 0)
        start += rows


def _heights(parts: tuple[str, ...], b: TensorRef, reading: Reading) -> list[int]:
    """How many rows of B are each projection's, in the proportion of their heads."""
    if len(parts) == 1:
        return [b.shape[0]]
    queries, keys = head_counts(b, reading.base)
    counts = {"q": queries, "k": keys, "v": keys}
    total = sum(counts[part] for part in parts)
    unit, rest = divmod(b.shape[0], total)
    if rest:
        message = f"{b.shape[0]} rows are no {total} heads of {'+'.join(parts)}"
        hint = "is this the base that the adapter was trained on?"
        raise MismatchError(
            message, code=Code.SHAPE_MISMATCH, file=b.file, tensor=b.name, hint=hint
        )
    return [counts[part] * unit for part in parts]
