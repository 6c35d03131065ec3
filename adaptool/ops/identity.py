"""One name for each module: what adapters mean by theirs, in every spelling.

Beside a base its modules decide (`names/model_names.py`). Without one, what the inputs' own names
agree on under transformers' renames does; where two of them may mean one module and nothing
decides, the base is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from adaptool.findings import Code, Finding, Severity
from adaptool.layouts.experts_together import Stack, can_stack, together
from adaptool.model.adapter import Adapter, Delta, Form, Replaced
from adaptool.model.reading import BaseNames
from adaptool.names.families import INTERLEAVED_EXPERTS, SWAPPED_EXPERTS
from adaptool.names.model_names import Home
from adaptool.ops.agreed_names import agreed
from adaptool.ops.naming import Naming, beside

_EXPERT = re.compile(r"(?:^|\.)experts\.\d+\.")


def settled(adapters: Sequence[Adapter], base: BaseNames | None) -> list[Adapter]:
    """The adapters under common names, which are those that PEFT finds in the current library.

    MismatchError (exit 4) where two of them may mean one module and nothing decides.
    """
    naming = beside(base) if base is not None else agreed(adapters)
    if naming is None:
        return list(adapters)
    if base is not None and _all_bare(adapters, naming):
        naming = replace(naming, home=partial(_bare_home, naming))
    return [_named(adapter, naming) for adapter in adapters]


def single_expert_notes(adapter: Adapter) -> tuple[Finding, ...]:
    """A warning for experts one by one, on the way into PEFT's layout without a base.

    The library's modules hold them as one parameter in most families, under the family's own name
    and order of axes, and PEFT passes over names that it does not find.
    """
    single = [delta for delta in adapter.deltas if _EXPERT.search(delta.module)]
    if adapter.layout == "peft" or not single:
        return ()
    message = (
        f"{len(single)} modules of single experts: transformers 5 stacks them, and PEFT finds them "
        "in few families"
    )
    hint = "--base BASE writes what it finds (only its config and headers are read)"
    return (
        Finding(Code.PEFT_QUIRK, Severity.WARNING, message, tensor=single[0].parameter, hint=hint),
    )


def _all_bare(adapters: Iterable[Adapter], naming: Naming) -> bool:
    """Whether all were trained on the model without its head, and are named accordingly."""
    shorter = False
    for adapter in adapters:
        for delta in adapter.deltas:
            found = naming.home(delta.parameter, delta)
            if found is None or naming.bare(found.parameter) == found.parameter:
                continue
            if not found.is_whole or delta.parameter != naming.bare(found.parameter):
                return False
            shorter = True
    return shorter


def _bare_home(naming: Naming, parameter: str, delta: Delta | None) -> Home | None:
    found = naming.home(parameter, delta)
    return None if found is None else replace(found, parameter=naming.bare(found.parameter))


def _named(adapter: Adapter, naming: Naming) -> Adapter:
    deltas: list[Delta] = []
    stacks: dict[str, dict[tuple[int, int], Delta]] = {}
    chunks: dict[str, int] = {}
    for delta in adapter.deltas:
        found = naming.home(delta.parameter, delta)
        if found is None:
            deltas.append(delta)
        elif found.is_whole:
            deltas.append(renamed(delta, found.parameter))
        elif found.expert is not None and can_stack(delta):
            pieces = stacks.setdefault(found.parameter, {})
            pieces[found.expert, found.chunk] = delta
            chunks[found.parameter] = found.chunks
        else:
            deltas.append(delta)
    deltas += [
        together(_stack(parameter, chunks[parameter], pieces, naming), pieces)
        for parameter, pieces in stacks.items()
    ]
    return replace(
        adapter,
        deltas=tuple(deltas),
        replaced=tuple(_renamed_tensor(item, naming) for item in adapter.replaced),
    )


def _stack(
    parameter: str, chunks: int, pieces: Mapping[tuple[int, int], Delta], naming: Naming
) -> Stack:
    experts = naming.experts(parameter) or 1 + max(expert for expert, _ in pieces)
    interleaved = chunks > 1 and bool(INTERLEAVED_EXPERTS & naming.types)
    return Stack(parameter, experts, chunks, interleaved, bool(SWAPPED_EXPERTS & naming.types))


def renamed(delta: Delta, parameter: str) -> Delta:
    """The delta under its parameter's other name; the path in its keys follows."""
    old, new = _different_part(delta.parameter, parameter)
    if not _is_same_leaf(delta.parameter, parameter):
        return delta
    if _is_by_name(delta):
        return replace(delta, parameter=parameter)
    path = delta.module
    rest = path.removeprefix(old)
    if old and path.startswith(old) and rest[:1] in ("", "."):
        path = f"{new}{rest}"
    elif not old:
        path = f"{new}.{path}" if new else path
    return replace(delta, module=path.removeprefix("."), parameter=parameter)


def _is_by_name(delta: Delta) -> bool:
    return delta.terms.form is Form.EXPERTS or bool(delta.terms.conventions.get("parameter"))


def _is_same_leaf(one: str, other: str) -> bool:
    return one.rpartition(".")[2] == other.rpartition(".")[2]


def _different_part(one: str, other: str) -> tuple[str, str]:
    """Two paths without the components that they end with alike; "" for nothing left."""
    ours, theirs = one.split("."), other.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return ".".join(ours), ".".join(theirs)


def _renamed_tensor(item: Replaced, naming: Naming) -> Replaced:
    """A whole tensor under its other name, which its key in the file follows."""
    found = naming.home(item.parameter, None)
    if found is None or not found.is_whole or found.parameter == item.parameter:
        return item
    old, new = _different_part(item.parameter, found.parameter)
    key = item.value.name
    place = key.find(old) if old else -1
    if place >= 0:
        key = f"{key[:place]}{new}{key[place + len(old) :]}"
    else:
        key = key.replace(item.parameter, found.parameter)
    value = replace(item.value, name=key)
    return replace(item, parameter=found.parameter, value=value)
