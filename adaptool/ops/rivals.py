"""Models of one pipeline that have the same modules, where the base is only one of them.

Two text encoders, or the two denoisers of Wan 2.2: without its component's name a base does not say
which of them it is, and the deltas of both would be added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta
from adaptool.names.resolver import COMPONENTS, Resolution


@dataclass(frozen=True, slots=True)
class Located:
    """A delta whose sizes are known, and the tensors of the base it belongs to."""

    delta: Delta
    found: Resolution

    @property
    def component(self) -> str:
        """The model of a pipeline that the delta is for; "" where its name has none."""
        first = self.delta.module.partition(".")[0]
        return first if first in COMPONENTS else ""

    @property
    def names(self) -> list[str]:
        """The stored tensors that are the delta's own."""
        delta = self.delta
        return [ref.name for role, ref in delta.roles.items() if role not in delta.shared]


def without_rivals(
    located: Sequence[Located], drops: Callable[[list[str]], bool]
) -> tuple[list[Located], list[str]]:
    """The deltas of one model, and the names of those that `drops` allows to leave out.

    MismatchError where deltas of several models of a pipeline belong to one tensor of the base.
    """
    rivals = _rivals(located)
    left: list[Located] = []
    dropped: list[str] = []
    for each in located:
        if each.component in rivals and drops(each.names):
            dropped += each.names
        else:
            left.append(each)
    if _rivals(left):
        raise _error(left, sorted(_rivals(left)))
    return left, dropped


def _rivals(located: Sequence[Located]) -> frozenset[str]:
    """The components that meet in a tensor."""
    by_tensor: dict[str, set[str]] = {}
    for each in located:
        for placement in each.found.placements if each.component else ():
            by_tensor.setdefault(placement.tensor, set()).add(each.component)
    return frozenset(name for names in by_tensor.values() if len(names) > 1 for name in names)


def _beginning(names: Sequence[str]) -> str:
    """What all names begin with."""
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((place for place, (a, b) in pairs if a != b), len(first))]


def _error(located: Sequence[Located], rivals: Sequence[str]) -> MismatchError:
    last = [name for each in located if each.component == rivals[-1] for name in each.names]
    models = " and ".join(rivals)
    message = f"the base may be {models} of the pipeline, and the adapter changes both"
    hint = f"--allow-drop '{_beginning(last)}*' leaves {rivals[-1]} out"
    return MismatchError(message, code=Code.LAYOUT_AMBIGUOUS, tensor=last[0], hint=hint)
