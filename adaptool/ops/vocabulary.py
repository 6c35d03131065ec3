"""A vocabulary that an adapter resized: what else of the model has its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.derived import padded, taken
from adaptool.model.view import Span
from adaptool.ops.drafts import Draft, Drafts
from adaptool.ops.ties import EMBEDDINGS, Ties
from adaptool.store.tensors import TensorRef

# One number for each token that is added to the logits and in no module of its own: transformers
# fills it up with zeros, or cuts it. Source: `_resize_final_logits_bias`.
_LOGITS_BIAS = "final_logits_bias"
FIELD = "vocab_size"


def follow(drafts: Drafts, ties: Ties, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give what is as long as a resized embedding its new size; returns the config's edits.

    MismatchError (exit 4) for a bias of the resized head that the adapter does not bring.
    """
    tied = {name for group in ties.groups for name in group.names}
    sizes = {size for size in (_said(config or {}), _said(_text(config))) if size is not None}
    edits: dict[str, Any] = {}
    for draft in list(drafts.values()):
        old = draft.original
        if old is None or len(old.shape) != 2 or old.shape[0] == draft.shape[0]:
            continue
        if draft.name in tied or _is_embedding(draft.name) or old.shape[0] in sizes:
            edits[FIELD] = draft.shape[0]
            _resize_biases(drafts, draft, old.shape[0])
    return edits


def _said(config: Mapping[str, Any]) -> int | None:
    found = config.get(FIELD)
    return found if type(found) is int else None


def _text(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = (config or {}).get("text_config")
    return found if isinstance(found, Mapping) else {}


def _is_embedding(name: str) -> bool:
    return f".{name}".endswith(tuple(f".{ending}" for ending in EMBEDDINGS))


def _resize_biases(drafts: Drafts, resized: Draft, old: int) -> None:
    new, place = resized.shape[0], resized.replaced_by
    for name, draft in drafts.items():
        if name.rpartition(".")[2] == _LOGITS_BIAS and draft.shape[-1] == old and place is not None:
            draft.replace(_fitted(draft.source, new), place)
    bias = drafts.get(resized.name.removesuffix("weight") + "bias")
    if bias is not None and bias.shape == (old,):
        message = f"the head is resized to {new}, the adapter does not bring its bias of {old}"
        hint = "save the adapter again with save_embedding_layers=True"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=bias.name, hint=hint)


def _fitted(ref: TensorRef, size: int) -> TensorRef:
    axis = len(ref.shape) - 1
    if ref.shape[axis] < size:
        return padded(ref, size, axis)
    return taken(ref, Span(0, size), axis)
