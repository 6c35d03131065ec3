"""DoRA on some modules and plain LoRA on others, where a layout has one switch for all of them.

PEFT's `use_dora` is a field of the whole adapter: it makes up a magnitude for each module whose
file has none. A magnitude that changes nothing is the norm of W + BA, which only the base tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adaptool.layouts.kohya_factors import OUTPUT_NORM, PLAIN
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.derived import leaves
from adaptool.model.encoding import Loss

WHY = (
    "DoRA on some modules only, and use_dora would be a switch for all (kohya's and ComfyUI's "
    "layouts hold both kinds; `convert --as lora --base BASE --rank N` makes LoRA of it)"
)


def partly_dora(adapter: Adapter, switch: Callable[[Delta], str] = lambda _: "") -> Iterator[Loss]:
    """The magnitudes of adapters, or of parts that share a `switch`, that are not DoRA in all."""
    kinds: dict[str, dict[str, list[Delta]]] = {}
    for delta in adapter.deltas:
        if delta.tuner in (PLAIN, OUTPUT_NORM):
            kinds.setdefault(switch(delta), {}).setdefault(delta.tuner, []).append(delta)
    for found in kinds.values():
        if len(found) > 1:
            refs = [delta.roles["magnitude"] for delta in found[OUTPUT_NORM]]
            names = dict.fromkeys(leaf.name for ref in refs for leaf in leaves(ref))
            yield Loss(tuple(names), WHY)
