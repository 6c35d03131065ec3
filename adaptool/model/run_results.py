"""What `run` returns; `as_json` gives the keys that scripts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from adaptool.errors import MOST_ERRORS, AdaptoolError, CheckFailed
from adaptool.findings import Finding


class StepStatus(StrEnum):
    """What became of a step; `would-run` only in a dry run."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    NOT_RUN = "not-run"
    WOULD_RUN = "would-run"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of a recipe.

    `result` is the JSON of its verb, of a skipped step that of when it was done, else None.
    `seconds` is None where nothing ran. `error` is what the verb raised.
    """

    name: str
    verb: str
    status: StepStatus
    seconds: float | None = None
    result: Mapping[str, Any] | None = None
    findings: tuple[Finding, ...] = ()
    error: AdaptoolError | None = None

    def as_json(self) -> dict[str, Any]:
        """One entry of `steps`."""
        body: dict[str, Any] = {
            "name": self.name,
            "verb": self.verb,
            "status": str(self.status),
            "seconds": self.seconds,
            "result": self.result,
        }
        return body if self.error is None else {**body, "error": self.error.as_json()}


@dataclass(frozen=True, slots=True)
class RunResult:
    """A recipe that was run, as far as it went."""

    recipe: Path
    steps: tuple[StepResult, ...]
    dry_run: bool = False

    @property
    def failed(self) -> StepResult | None:
        """The step that ended the run."""
        return next((step for step in self.steps if step.status is StepStatus.FAILED), None)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return self.failed is None

    @property
    def exit_code(self) -> int:
        """0, or that of the failed step as a command of its own."""
        if self.failed is None:
            return 0
        return self.failed.error.exit_code if self.failed.error else CheckFailed.exit

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of the steps that ran."""
        return tuple(finding for step in self.steps for finding in step.findings)

    def as_json(self) -> dict[str, Any]:
        """The object that `run --json` prints, with `error` where a step raised one."""
        body: dict[str, Any] = {
            "recipe": str(self.recipe),
            "ok": self.ok,
            "dry_run": self.dry_run,
            "steps": [step.as_json() for step in self.steps],
            "findings": [finding.as_json() for finding in self.findings],
        }
        error = self.failed.error if self.failed else None
        if error is None:
            return body
        errors = [each.as_json() for each in (error, *error.others)][:MOST_ERRORS]
        return {**body, "error": errors[0], "errors": errors}
