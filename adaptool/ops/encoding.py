"""An adapter on its way into a layout: what would be lost is said first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adaptool.errors import AdaptoolError, MismatchError, UsageError, gathered
from adaptool.findings import Code
from adaptool.layouts import writable
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.derived import leaves
from adaptool.model.encoding import Destination, Encoded, Loss
from adaptool.model.plan import Plan
from adaptool.model.reading import is_allowed
from adaptool.readers import check
from adaptool.store.tensors import TensorRef

GGUF_SUFFIX = ".gguf"
SINGLE_FILES = frozenset({".safetensors", ".st", ".sft", GGUF_SUFFIX})


def single_file(out: Path) -> bool:
    """Whether OUT names a file: it has the suffix of one and is no directory."""
    return out.suffix.lower() in SINGLE_FILES and not out.is_dir()


def encoded(
    adapter: Adapter, layout: str, destination: Destination, allow_drop: Sequence[str] = ()
) -> tuple[Encoded, Adapter, tuple[str, ...]]:
    """The adapter in `layout`, what is kept of it, and the names of tensors left out as allowed.

    MismatchError (exit 4) lists what the layout cannot hold and `allow_drop` does not name. What
    is encoded is read as the program reads it that loads such files: errors as in `readers.check`.
    """
    _check_suffix(layout, destination)
    target = writable()[layout]
    losses = target.losses(adapter)
    dropped = tuple(name for loss in losses for name in loss.tensors)
    refused = [
        _refusal(adapter, layout, loss, lost)
        for loss in losses
        for lost in [[name for name in loss.tensors if not is_allowed(name, allow_drop)]]
        if lost
    ]
    if refused:
        raise gathered(refused)
    kept = _without(adapter, frozenset(dropped))
    if not kept.deltas and not kept.replaced:
        message = f"{layout} can hold none of its {len(adapter.deltas)} modules"
        raise MismatchError(message, code=Code.LAYOUT_CANNOT_HOLD, file=adapter.name)
    body = target.encode(kept, destination)
    check(kept, layout, body, destination.base)
    return body, kept, dropped


def _check_suffix(layout: str, destination: Destination) -> None:
    """UsageError where the file's name says another container than the layout's."""
    named = (destination.file or "").lower().endswith(GGUF_SUFFIX)
    if destination.file is None or named == (layout == "gguf"):
        return
    wanted = GGUF_SUFFIX if layout == "gguf" else ".safetensors"
    message = f"{layout} is written to a {wanted} file"
    raise UsageError(message, code=Code.USAGE, file=destination.file)


def _refusal(adapter: Adapter, layout: str, loss: Loss, lost: Sequence[str]) -> AdaptoolError:
    message = f"{loss.why}; {layout} cannot hold {len(lost)} tensors"
    hint = f"--allow-drop {lost[0]!r} leaves it out; merge keeps everything"
    return MismatchError(
        message, code=Code.LAYOUT_CANNOT_HOLD, file=adapter.name, tensor=lost[0], hint=hint
    )


def kept_of(adapter: Adapter, plan: Plan) -> Adapter:
    """What of `adapter` the plan writes: all but what was left out as allowed."""
    return _without(adapter, frozenset(plan.decisions["dropped"]))


def _without(adapter: Adapter, names: frozenset[str]) -> Adapter:
    """The adapter without what is made of these stored tensors."""
    if not names:
        return adapter
    return replace(
        adapter,
        deltas=tuple(kept for delta in adapter.deltas if (kept := _rest(delta, names))),
        replaced=tuple(item for item in adapter.replaced if not _stands_in(item, names)),
    )


def _rest(delta: Delta, names: frozenset[str]) -> Delta | None:
    """The delta without the roles concerned; None where what is left is no update.

    DoRA without its magnitude is a LoRA.
    """
    roles = {role: ref for role, ref in delta.roles.items() if not _is_of(ref, names)}
    whole = len(roles) == len(delta.roles)
    if whole:
        return delta
    without = delta.tuner == "dora" and delta.roles.keys() - roles.keys() == {"magnitude"}
    return replace(delta, roles=roles, tuner="lora") if without else None


def _stands_in(item: Replaced, names: frozenset[str]) -> bool:
    return _is_of(item.value, names)


def _is_of(ref: TensorRef, names: frozenset[str]) -> bool:
    return any(leaf.name in names for leaf in leaves(ref))
