"""Adapters that were trained on a 4-bit base, and a 16-bit base to merge them into.

`--qlora-base dequantized` merges onto the weights that training saw; the default keeps the original
ones and says so where the adapter's config names a 4-bit base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter
from adaptool.ops.drafts import Draft
from adaptool.quantizers.round_trip import round_trip

# What bitsandbytes leaves alone: heads, and everything that is no linear layer.
_KEPT = re.compile(
    r"(^|\.)(lm_head|score|classifier|embed_out|proj_out|qa_outputs|shared|wte|wpe|"
    r"[a-z_]*embed[a-z_]*|relative_attention_bias|[a-z_]*norm[a-z_]*|ln_[a-z0-9]+)(\.|$)"
)
_FOUR_BIT = re.compile(r"-(unsloth-)?bnb-4bit$")


def on_trained_weights(drafts: Iterable[Draft], *, quantized: bool, loftq: bool) -> None:
    """Replace every weight of the base among them by its round trip through nf4.

    MismatchError where the base is quantized: it is then what training saw.
    """
    if quantized:
        message = "the base is quantized already, so it needs no round trip"
        raise MismatchError(message, code=Code.UNSUPPORTED, field="--qlora-base")
    for draft in drafts:
        if draft.original is not None:
            draft.original = round_trip(draft.original, loftq=loftq)
        elif draft.replaced_by is None:
            draft.source = round_trip(draft.source, loftq=loftq)


def is_loftq(adapter: Adapter) -> bool:
    """Whether training began on nf4 weights, with what rounding lost in the adapter."""
    return (adapter.changed_base or "").startswith("loftq")


def check_loftq(adapter: Adapter, *, dequantized: bool, subtracted: bool) -> None:
    """MismatchError unless training's weights, W rounded to nf4, follow from the base.

    They do after one iteration at 4 bits; after more, what was rounded is W minus a product that
    no file holds. The initial adapter does not tell them either.
    """
    config = adapter.config.get("loftq_config") or {}
    follows = (config.get("loftq_bits", 4), config.get("loftq_iter", 1)) == (4, 1)
    if follows and dequantized and not subtracted:
        return
    message = "LoftQ rounded the base before training; "
    message += (
        "the trained weights are nf4(W) plus the adapter, whatever the adapter began as"
        if follows
        else f"of {config.get('loftq_iter')} iterations at {config.get('loftq_bits')} bits they "
        "do not follow from W"
    )
    hint = "merge --qlora-base dequantized gives them, without --init-adapter"
    raise MismatchError(
        message,
        code=Code.INIT_CHANGED_BASE,
        file=adapter.name,
        field="init_lora_weights",
        hint=hint if follows else "merge onto the quantized base that it was trained on",
    )


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
