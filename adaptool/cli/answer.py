"""What a command hands back: the same answer for scripts and for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.errors import AdaptoolError
from adaptool.findings import Finding

if TYPE_CHECKING:
    from rich.console import RenderableType


def _nothing() -> Iterable[RenderableType]:
    return ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished command.

    `body` is the JSON object; `people` makes what is shown on stdout instead, built only when it
    is shown; `findings` are remarks beside the answer, for stderr, and so are the `errors` that
    ended what it tells of; `exit` is 1 where a check said no. `asked` is False where what people
    see is only news of what was done: --quiet drops it.
    """

    body: Mapping[str, Any]
    people: Callable[[], Iterable[RenderableType]] = _nothing
    findings: tuple[Finding, ...] = ()
    errors: tuple[AdaptoolError, ...] = ()
    exit: int = 0
    asked: bool = True
