"""What `validate` returns for several paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptool.findings import Finding
from adaptool.model.results import ValidateResult


@dataclass(frozen=True, slots=True)
class Validated:
    """Several artifacts, each with its findings; `ok` where all of them are."""

    items: tuple[ValidateResult, ...]

    @property
    def ok(self) -> bool:
        """Nothing that counts as an error in any of them."""
        return all(item.ok for item in self.items)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all items."""
        return tuple(finding for item in self.items for finding in item.findings)

    def as_json(self) -> dict[str, Any]:
        """The object that `validate --json` prints for several paths."""
        return {"ok": self.ok, "items": [item.as_json() for item in self.items]}
