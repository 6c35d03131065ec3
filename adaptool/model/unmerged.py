"""What unmerge returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.findings import Finding
from adaptool.model.published import Published, destination


@dataclass(frozen=True, slots=True)
class UnmergeResult:
    """A base taken out of a merged model, or with `dry_run` the plan of it.

    `exact`: every byte is the base's. `bound`: how many steps of the dtype an element may be away
    at most; 0 where it is exact, None where that is not known.
    """

    out: Path
    exact: bool
    total: int
    touched: int
    bytes: int
    bound: int | None
    seconds: float
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    plan: dict[str, Any] | None = None
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `unmerge --json` prints."""
        body: dict[str, Any] = {
            **destination(self.out, self.published),
            "exact": self.exact,
            "tensors": {"total": self.total, "touched": self.touched},
            "bytes": self.bytes,
            "bound": self.bound,
            "seconds": self.seconds,
            "findings": [finding.as_json() for finding in self.findings],
        }
        if self.plan is not None:
            body["plan"] = self.plan
        return body
