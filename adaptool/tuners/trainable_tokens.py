"""Trainable tokens: rows of an embedding that were trained, the rest of it frozen.

E'[t_k] = D[k]     for the tokens t of `token_indices`

`trainable_tokens_delta` D (tokens, dim) holds the rows themselves, no differences. An output layer
that is tied to the embedding carries the same rows. Source: PEFT 0.21.2,
`trainable_tokens/layer.py`. (The rows beside a LoRA, `trainable_token_indices`, are read by
`layouts/peft_deltas.py`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Replaced
from adaptool.model.tuner import Declaration
from adaptool.store.tensors import TensorRef

DECLARATION = Declaration(
    title="Trainable tokens",
    peft_type="TRAINABLE_TOKENS",
    keys={"trainable_tokens_delta": "rows"},
    required=frozenset({"rows"}),
    additive=False,
    low_rank=False,
    invertible="no",
)


def carried(
    config: Mapping[str, Any], module: str, roles: Mapping[str, TensorRef]
) -> tuple[Replaced, ...]:
    """The trained rows; InputError where the config names other tokens than there are rows."""
    value, tokens = roles["rows"], _tokens(config, module)
    if len(value.shape) != 2 or len(tokens) != value.shape[0]:
        message = f"names {len(tokens)} tokens, the rows are {list(value.shape)}"
        raise InputError(
            message, code=Code.SHAPE_MISMATCH, tensor=value.name, field="token_indices"
        )
    return (Replaced(f"{module}.weight", value, rows=tokens, tuner="trainable_tokens"),)


def _tokens(config: Mapping[str, Any], module: str) -> tuple[int, ...]:
    tokens = config.get("token_indices")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        message = f"is {tokens!r:.60}, must be a list of token ids"
        raise InputError(message, code=Code.FIELD_TYPE, tensor=module, field="token_indices")
    if len(set(tokens)) != len(tokens) or min(tokens, default=0) < 0:
        message = f"the {len(tokens)} token ids must be different ones and none below 0"
        raise InputError(message, code=Code.FIELD_VALUE, tensor=module, field="token_indices")
    return tuple(tokens)
