"""How large the base's weights are where an adapter changes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptool.errors import AdaptoolError, Interrupted
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter
from adaptool.model.values import ValueReader
from adaptool.ops import quantized, replication, ties
from adaptool.ops.contributions import Contribution, Permissions
from adaptool.ops.drafts import Drafts, drafts_of
from adaptool.store.checkpoint import Checkpoint


def opened_drafts(base: Checkpoint) -> Drafts:
    """The checkpoint's tensors by name, packed weights as the plain ones they stand for."""
    files = [(name, shard.file) for shard in base.shards for name in shard.header.tensors]
    drafts, _ = quantized.open_up(drafts_of(base.tensors, files), base)
    return drafts


def base_norms(
    adapter: Adapter, base: Checkpoint, values: ValueReader
) -> tuple[dict[str, float], tuple[Finding, ...]]:
    """|W| of what each delta is added to, by the delta's parameter, found as a merge finds it.

    Modules that the base lacks have none. Where adapter and base do not fit each other there are
    no norms at all, and a finding says why.
    """
    try:
        drafts = with_deltas(base, [(adapter, 1.0)])
    except Interrupted:
        raise
    except AdaptoolError as error:
        return {}, (_unfit(error, base),)
    found: dict[str, float] = {}
    for draft in drafts.values():
        for piece in draft.pieces:
            parameter = piece.delta.parameter
            part = values.squares(draft.source, piece.view)
            found[parameter] = found.get(parameter, 0.0) + part
    return {parameter: math.sqrt(squares) for parameter, squares in found.items()}, ()


def with_deltas(base: Checkpoint, summands: Sequence[tuple[Adapter, float]]) -> Drafts:
    """The base's tensors with what each weighted adapter adds to them, as a merge would.

    Modules that the base lacks are left out; MismatchError where others do not fit.
    """
    drafts = opened_drafts(base)
    ranges = next((adapter.layer_replication for adapter, _ in summands), ())
    if ranges:
        drafts = replication.replicated(drafts, ranges)
    ties.add_absent(drafts, ties.find(drafts, base.config))
    permissions = Permissions(skip_unmatched=True, allow_drop=())
    for place, (adapter, weight) in enumerate(summands):
        Contribution(
            place, adapter, weight, drafts, config=base.config, permissions=permissions
        ).add()
    return drafts


def _unfit(error: AdaptoolError, base: Checkpoint) -> Finding:
    count = f" (and {len(error.others)} more)" if error.others else ""
    return Finding(
        code=error.code if error.code is not Code.INTERNAL else Code.UNSUPPORTED,
        severity=Severity.WARNING,
        message=f"nothing is compared with the base's weights: {error.message}{count}",
        file=error.file or base.name,
        tensor=error.tensor,
        field=error.field,
        hint=error.hint,
    )
