"""Whether what was stored again still holds the adapters' deltas."""

from __future__ import annotations

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.plan import LEAST_RETAINED, Plan
from adaptool.model.results import MergeStats


def rounded_away(stats: MergeStats) -> tuple[Finding, ...]:
    """A warning where rounding to the output's dtype left less than half of all deltas.

    Of weights that are stored in a base's own format `lost_deltas` speaks.
    """
    kept = stats.retained
    if stats.recoded or kept is None or kept >= LEAST_RETAINED:
        return ()
    message = f"{kept:.1%} of the adapters' deltas survives rounding to the dtype of the output"
    hint = "they are small beside the weights: --dtype float32 keeps them"
    return (Finding(Code.DELTA_LOST, Severity.WARNING, message, hint=hint),)


def lost_deltas(plan: Plan, stats: MergeStats) -> tuple[Finding, ...]:
    """A warning where a recoded weight kept less than half of its delta.

    MismatchError where that is less than the plan asks for.
    """
    kept = {name: share for name, share in stats.recoded.items() if share is not None}
    least = LEAST_RETAINED if plan.least_retained is None else plan.least_retained
    below = [name for name, share in kept.items() if share < least]
    if not below:
        return ()
    worst = min(below, key=lambda name: kept[name])
    message = (
        f"{kept[worst]:.1%} of its delta survives in the base's format, {least:.0%} is asked for; "
        f"{len(below)} of {len(stats.recoded)} weights are below"
    )
    hint = "--quantized touched writes these weights in 16 bit"
    if plan.least_retained is None:
        return (Finding(Code.DELTA_LOST, Severity.WARNING, message, tensor=worst, hint=hint),)
    raise MismatchError(
        message,
        code=Code.DELTA_LOST,
        tensor=worst,
        field="--quantized",
        hint=f"{hint}; --allow-lossy writes them all the same",
    )
