"""Adapters that were trained on a 4-bit base, and a 16-bit base to merge them into.

`--qlora-base dequantized` merges onto the weights that training saw; the default keeps the original
ones and says so where the adapter's config names a 4-bit base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter
from adaptool.ops.drafts import Draft, Drafts
from adaptool.quantizers.round_trip import round_trip

# What bitsandbytes leaves alone: heads, and everything that is no linear layer.
_KEPT = re.compile(
    r"(^|\.)(lm_head|score|classifier|embed_out|proj_out|qa_outputs|shared|wte|wpe|"
    r"[a-z_]*embed[a-z_]*|relative_attention_bias|[a-z_]*norm[a-z_]*|ln_[a-z0-9]+)(\.|$)"
)
_FOUR_BIT = re.compile(r"-(unsloth-)?bnb-4bit$")


def on_trained_weights(drafts: Drafts, *, quantized: bool) -> int:
    """Replace every linear weight by its round trip through nf4; returns how many.

    MismatchError where the base is quantized: it is then what training saw.
    """
    if quantized:
        message = "the base is quantized already, so it needs no round trip"
        raise MismatchError(message, code=Code.UNSUPPORTED, field="--qlora-base")
    count = 0
    for draft in drafts.values():
        if is_linear(draft):
            draft.source = round_trip(draft.source)
            count += 1
    return count


def is_linear(draft: Draft) -> bool:
    """Whether bitsandbytes would have quantized this tensor."""
    return (
        draft.name.endswith(".weight")
        and len(draft.shape) == 2
        and draft.source.dtype.floating
        and draft.source.dtype.bits >= 16
        and _KEPT.search(draft.name) is None
    )


def notes(adapter: Adapter, *, quantized: bool, dequantized: bool) -> Iterator[Finding]:
    """A word where the adapter was trained on 4 bit and the base given is the 16-bit original."""
    if quantized or dequantized or adapter.base is None or not _FOUR_BIT.search(adapter.base):
        return
    message = f"trained on {adapter.base}, merged into the original 16-bit weights"
    hint = "merge --qlora-base dequantized takes the weights that training saw"
    yield Finding(
        Code.QLORA_BASE,
        Severity.WARNING,
        message,
        file=adapter.name,
        field="base_model_name_or_path",
        hint=hint,
    )
