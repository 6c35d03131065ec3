"""An adapter made ready for another layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adaptool.errors import UsageError
from adaptool.findings import Code, Finding
from adaptool.layouts import writable
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.algebra import Algebra, Measured
from adaptool.model.convert_options import ConvertOptions
from adaptool.model.derived import F32
from adaptool.ops.based import Based
from adaptool.ops.low_rank import refuse_changed_base
from adaptool.ops.plain_lora import PLAIN, as_plain_lora, is_thick, subtracted


@dataclass(frozen=True, slots=True)
class Converted:
    """The adapter to be written; `measured` where factors were made anew.

    `through_base`: some were taken through the base; their errors are the extractor's to tell.
    """

    adapter: Adapter
    measured: Measured | None
    findings: tuple[Finding, ...]
    through_base: bool = False


def converted(
    adapter: Adapter,
    options: ConvertOptions,
    algebra: Algebra,
    *,
    initial: Adapter | None,
    based: Based | None = None,
) -> Converted:
    """`adapter` in the form the options ask for.

    UsageError where the target layout cannot be written; MismatchError where the form cannot be
    had.
    """
    if options.to not in writable():
        message = f"{options.to!r} is none of {', '.join(sorted(writable()))}"
        raise UsageError(message, code=Code.USAGE, field="--to")
    if initial is not None:
        adapter = subtracted(adapter, initial)
    elif options.as_lora or options.to != "peft":
        refuse_changed_base(adapter, "converting it")
    if not options.as_lora or _is_plain(adapter, options):
        return Converted(adapter, None, ())
    made = as_plain_lora(adapter, options.rank, algebra, based)
    wide = tuple(map(_in_float32, made.adapter.deltas)) if options.rank is None else None
    found = made.adapter if wide is None else replace(made.adapter, deltas=wide)
    return Converted(found, made.measured, made.findings, any(map(is_thick, adapter.deltas)))


def _is_plain(adapter: Adapter, options: ConvertOptions) -> bool:
    """Whether there is nothing to bring to LoRA form."""
    return options.rank is None and all(delta.tuner in PLAIN for delta in adapter.deltas)


def _in_float32(delta: Delta) -> Delta:
    """Factors that stand for others exactly are not rounded to 16 bits."""
    if delta.dtype is None or delta.dtype.bits >= F32.bits:
        return delta
    return replace(delta, dtype=F32)
