"""The receipt `adaptool.json`: what was done, in a form that a later run can check.

No clock, host name, user name, absolute path, thread count or device stands in it, so that the
same command on the same inputs writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adaptool.model.plan import Plan
from adaptool.model.results import MergeStats

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """A file of the output; `sha256` only with --checksum."""

    name: str
    bytes: int
    sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry under `outputs`."""
        body: dict[str, Any] = {"name": self.name, "bytes": self.bytes}
        if self.sha256 is not None:
            body["sha256"] = self.sha256
        return body


def sums(outputs: Sequence[OutputEntry]) -> bytes:
    """SHA256SUMS in coreutils' format: `sha256sum -c SHA256SUMS` checks the directory."""
    return "".join(f"{entry.sha256}  {entry.name}\n" for entry in outputs).encode()


def versions() -> dict[str, str]:
    """The packages that decide bytes; a build's local suffix (+cpu) is left out."""
    found = {}
    for name in ("adaptool", "torch"):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def receipt(
    command: str, plan: Plan, outputs: Sequence[OutputEntry], stats: MergeStats
) -> Mapping[str, Any]:
    """The receipt as a JSON object."""
    return {
        "schema": SCHEMA,
        "command": command,
        "options": dict(plan.options),
        "inputs": [dict(entry) for entry in plan.inputs],
        "outputs": [entry.as_json() for entry in outputs],
        "versions": versions(),
        "tensors": {
            "total": len(plan.rows),
            "touched": plan.touched,
            "copied": len(plan.rows) - plan.touched,
        },
        "decisions": dict(plan.decisions),
        "stats": stats.as_json(),
    }
