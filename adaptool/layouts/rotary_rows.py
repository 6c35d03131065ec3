"""The order of the rows of q, k and v: rotary halves apart, or rotary pairs side by side.

transformers keeps a head's first and second half apart; Meta's checkpoints, llama.cpp's files of
that family and torchtune put the two numbers that are turned together side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.derived import permuted, reshaped
from adaptool.model.reading import BaseNames
from adaptool.names.families import head_count
from adaptool.store.tensors import TensorRef

_QKV = 3


def paired(b: TensorRef, heads: int) -> TensorRef:
    """From halves apart to pairs side by side; b (heads * dim, r)."""
    return _turned(b, (heads, 2, b.shape[0] // heads // 2, b.shape[1]))


def halved(b: TensorRef, heads: int) -> TensorRef:
    """From pairs side by side to halves apart; b (heads * dim, r)."""
    return _turned(b, (heads, b.shape[0] // heads // 2, 2, b.shape[1]))


def one_by_one(b: TensorRef, heads: int) -> TensorRef:
    """From q, k and v of each head to all of q, all of k, all of v; b (heads * 3 * dim, r)."""
    return _turned_qkv(b, (heads, _QKV, b.shape[0] // heads // _QKV, b.shape[1]))


def per_head(b: TensorRef, heads: int) -> TensorRef:
    """From all of q, all of k, all of v to those of each head; b (3 * heads * dim, r)."""
    return _turned_qkv(b, (_QKV, heads, b.shape[0] // heads // _QKV, b.shape[1]))


def _turned_qkv(b: TensorRef, shape: tuple[int, ...]) -> TensorRef:
    return reshaped(permuted(reshaped(b, shape), (1, 0, 2, 3)), b.shape)


def _turned(b: TensorRef, shape: tuple[int, ...]) -> TensorRef:
    return reshaped(permuted(reshaped(b, shape), (0, 2, 1, 3)), b.shape)


def heads_of(module: str, b: TensorRef, base: BaseNames | None) -> int:
    """How many heads the rows of q, k or all three are; MismatchError where none can say."""
    queries, keys = head_counts(b, base)
    heads = keys if module.endswith(".k_proj") else queries
    parts = _QKV if module.endswith(".query_key_value") else 2
    if b.shape[0] % (parts * heads):
        message = f"{b.shape[0]} rows are no {heads} heads of {parts} parts"
        hint = "is this the base that the adapter was trained on?"
        raise MismatchError(
            message, code=Code.SHAPE_MISMATCH, file=b.file, tensor=b.name, hint=hint
        )
    return heads


def head_counts(b: TensorRef, base: BaseNames | None) -> tuple[int, int]:
    """The base's heads of queries and of keys; MismatchError, naming `b`, where none can say."""
    config = base.config if base is not None else None
    heads = head_count(config)
    if not heads:
        message = "what its rows are depends on how many heads the base has"
        hint = "--base BASE (only its config is read)"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=b.file, tensor=b.name, hint=hint)
    return heads, _key_heads(config, heads)


def is_turned(module: str) -> bool:
    """Whether a module's rows are turned by the rotary embedding."""
    return module.endswith((".q_proj", ".k_proj"))


def _key_heads(config: Mapping[str, Any] | None, heads: int) -> int:
    for place in (config or {}, (config or {}).get("text_config")):
        if isinstance(place, Mapping) and type(place.get("num_key_value_heads")) is int:
            found: int = place["num_key_value_heads"]
            return found if found > 0 else heads
    return heads
