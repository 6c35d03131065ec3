"""What the verbs of adapter space return; `as_json` gives the keys that contract.md fixes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.findings import Finding
from adaptool.model.published import Published, destination


@dataclass(frozen=True, slots=True)
class ResizedModule:
    """One module of a resize.

    `relative_error`: |delta - resized| / |delta|; `energy`: the share of the delta's sum of
    squares that is kept. Both are of the truncation: rounding to a 16-bit dtype comes on top. For
    DoRA they are of B A; with a base the error is |f(W) - f'(W)| / |f(W) - W| instead.
    """

    module: str
    rank_before: int
    rank_after: int
    relative_error: float
    energy: float

    def as_json(self) -> dict[str, Any]:
        """One entry of `modules`."""
        return {
            "module": self.module,
            "rank_before": self.rank_before,
            "rank_after": self.rank_after,
            "relative_error": self.relative_error,
            "energy": self.energy,
        }


@dataclass(frozen=True, slots=True)
class ResizeResult:
    """A finished resize, or with `dry_run` what one would do."""

    out: Path
    modules: tuple[ResizedModule, ...]
    relative_error: float
    parameters_before: int
    parameters_after: int
    bytes: int
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `resize --json` prints."""
        return {
            **destination(self.out, self.published),
            "modules": [module.as_json() for module in self.modules],
            "relative_error": self.relative_error,
            "parameters": {"before": self.parameters_before, "after": self.parameters_after},
            "bytes": self.bytes,
            "dry_run": self.dry_run,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """A finished conversion, or with `dry_run` what one would do.

    `carried`: tensors that replace the base's, handed on as they are. `relative_error`: of the
    factors where another kind of adapter was brought to LoRA form, None elsewhere, and in a dry
    run where it takes the base's weights.
    """

    out: Path
    source: str
    target: str
    module_count: int
    carried: tuple[str, ...]
    bytes: int
    relative_error: float | None = None
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `convert --json` prints."""
        return {
            **destination(self.out, self.published),
            "from": self.source,
            "to": self.target,
            "module_count": self.module_count,
            "carried": list(self.carried),
            "bytes": self.bytes,
            "relative_error": self.relative_error,
            "dry_run": self.dry_run,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class CombineResult:
    """A finished combination, or with `dry_run` what one would do.

    `relative_error`: |result - what the method defines| / |what it defines|, rounding to the
    dtype aside; for `linear` against the exact weighted sum. None where it was not computed.
    """

    out: Path
    method: str
    rank_min: int | None
    rank_max: int | None
    exact: bool
    relative_error: float | None
    module_count: int
    bytes: int
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `combine --json` prints."""
        return {
            **destination(self.out, self.published),
            "method": self.method,
            "rank": {"min": self.rank_min, "max": self.rank_max},
            "exact": self.exact,
            "relative_error": self.relative_error,
            "module_count": self.module_count,
            "bytes": self.bytes,
            "dry_run": self.dry_run,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class ExtractedModule:
    """One module of an extraction; `relative_error` is |difference - factors| / |difference|."""

    module: str
    rank: int
    relative_error: float | None

    def as_json(self) -> dict[str, Any]:
        """One entry of `modules`."""
        return {
            "module": self.module,
            "rank": self.rank,
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """A finished extraction, or with `dry_run` what one would do (errors are then unknown).

    `saved` are tensors carried whole; `relative_error` is of all factored modules together.
    """

    out: Path
    modules: tuple[ExtractedModule, ...]
    saved: tuple[str, ...]
    unchanged: int
    relative_error: float | None
    bytes: int
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `extract --json` prints."""
        return {
            **destination(self.out, self.published),
            "modules": [module.as_json() for module in self.modules],
            "saved": list(self.saved),
            "unchanged": self.unchanged,
            "relative_error": self.relative_error,
            "bytes": self.bytes,
            "dry_run": self.dry_run,
            "findings": [finding.as_json() for finding in self.findings],
        }
