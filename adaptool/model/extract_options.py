"""What an extraction was asked to do, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.options import OutputDtype


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How much is kept: a rank for every matrix, or a share of each one's sum of squares."""

    rank: int | None
    energy: float | None
    dtype: OutputDtype = OutputDtype.FLOAT32
    exact: bool = False

    def __post_init__(self) -> None:
        """UsageError unless one of both is given and means something."""
        if (self.rank is None) == (self.energy is None):
            message = "exactly one of --rank and --energy is needed"
            raise UsageError(message, code=Code.USAGE, hint="--rank 16, or --energy 0.9")
        if self.rank is not None and self.rank < 1:
            message = f"{self.rank} given, must be at least 1"
            raise UsageError(message, code=Code.USAGE, field="--rank")
        if self.energy is not None and not 0 < self.energy <= 1:
            message = f"{self.energy:g} given, must be in (0, 1]"
            raise UsageError(message, code=Code.USAGE, field="--energy")

    def as_json(self) -> dict[str, Any]:
        """What decides the bytes, as the receipt records it."""
        return {
            "rank": self.rank,
            "energy": self.energy,
            "dtype": str(self.dtype),
            "exact": self.exact,
        }
