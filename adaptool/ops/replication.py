"""`layer_replication`: the adapter was trained on a base whose layers were repeated.

PEFT lets the replicas share storage and merges them wrongly (peft issue 1707); here every replica
becomes a real layer with its own delta. Source: PEFT 0.21.2, `replicate_layers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.ops.drafts import Draft, Drafts

_LAYER = re.compile(r"(.*?\b(?:layers|h|layer)\.)(\d+)(\..+)")


def replicated(drafts: Drafts, ranges: Sequence[tuple[int, int]]) -> Drafts:
    """The drafts of the deeper model: new layer n is base layer `order[n]`, byte for byte.

    A layer keeps its seat where the base has one of that number; MismatchError where a range goes
    past the base's last layer.
    """
    order = [layer for first, last in ranges for layer in range(first, last)]
    layers: dict[int, list[tuple[str, str]]] = {}
    made: Drafts = {}
    for name, draft in drafts.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            made[name] = draft
        else:
            layers.setdefault(int(match[2]), []).append((match[1], match[3]))
    missing = sorted(set(order) - set(layers))
    if missing:
        message = f"names layer {missing[0]}, the base has {len(layers)} layers"
        raise MismatchError(message, code=Code.MODULE_NOT_IN_BASE, field="layer_replication")
    for number, source in enumerate(order):
        for prefix, rest in layers[source]:
            made.update([_layer(drafts, prefix, rest, number, source)])
    kept = [name for name in drafts if name in made]
    return {name: made[name] for name in [*kept, *(new for new in made if new not in drafts)]}


def _layer(drafts: Drafts, prefix: str, rest: str, number: int, source: int) -> tuple[str, Draft]:
    name = f"{prefix}{number}{rest}"
    seat = drafts.get(name)
    origin = drafts[f"{prefix}{source}{rest}"]
    return name, Draft(name, origin.source, seat.file if seat else None, origin.dtype)


def config_edits(config: Mapping[str, Any], ranges: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """config.json's keys for the deeper model: the layer count and every per-layer list."""
    order = [layer for first, last in ranges for layer in range(first, last)]
    edits: dict[str, Any] = {}
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if type(config.get(key)) is int:
            count = config[key]
            edits[key] = len(order)
            edits.update(
                {
                    name: [value[layer] for layer in order]
                    for name, value in config.items()
                    if isinstance(value, list) and len(value) == count
                }
            )
            return edits
    return edits
