"""What a resize was asked to do, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.options import OutputDtype


@dataclass(frozen=True, slots=True)
class ResizeOptions:
    """One rule and its bounds.

    Per module: `rank`, `energy` (share of the sum of squares kept), `error` (relative, Frobenius)
    or `ratio` (smallest singular value over largest). For the adapter as a whole: `budget` (bytes
    of the weights file) or `keep` (share of the factors' parameters).
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    ratio: float | None = None
    budget: int | None = None
    keep: float | None = None
    min_rank: int = 1
    max_rank: int | None = None
    dtype: OutputDtype = OutputDtype.KEEP

    def __post_init__(self) -> None:
        """UsageError unless exactly one rule is given, with numbers that mean something."""
        if len(self.rule) != 1:
            given = " and ".join(f"--{name}" for name in self.rule) or "none of them"
            message = f"exactly one of {', '.join(f'--{name}' for name in _RULES)}, not {given}"
            raise UsageError(message, code=Code.USAGE, hint="--rank 8, or --energy 0.99")
        for name, value in self.rule.items():
            fits, what = _RULES[name]
            if not fits(value):
                message = f"{value:g} given, must be {what}"
                raise UsageError(message, code=Code.USAGE, field=f"--{name}")
        if self.min_rank < 1:
            message = f"{self.min_rank} given, must be at least 1"
            raise UsageError(message, code=Code.USAGE, field="--min-rank")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            message = f"{self.max_rank} is less than --min-rank {self.min_rank}"
            raise UsageError(message, code=Code.USAGE, field="--max-rank")

    @property
    def rule(self) -> Mapping[str, float]:
        """The rules that were given, by name: one, once this is made."""
        values = {name: getattr(self, name) for name in _RULES}
        return {name: value for name, value in values.items() if value is not None}

    def as_json(self) -> dict[str, Any]:
        """What decides the bytes, as the receipt records it."""
        bounds = {"min_rank": self.min_rank, "max_rank": self.max_rank, "dtype": str(self.dtype)}
        return {**self.rule, **bounds}


def _at_least_one(value: float) -> bool:
    return value >= 1


def _share(value: float) -> bool:
    return 0 < value <= 1


def _below_one(value: float) -> bool:
    return 0 <= value < 1


_RULES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "rank": (_at_least_one, "at least 1"),
    "energy": (_share, "in (0, 1]"),
    "error": (_below_one, "in [0, 1)"),
    "ratio": (_share, "in (0, 1]"),
    "budget": (_at_least_one, "at least one byte"),
    "keep": (_share, "in (0, 1]"),
}
