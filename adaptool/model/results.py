"""What each verb returns; `as_json` gives the keys that contract.md fixes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.findings import Finding, Severity


def _findings(findings: tuple[Finding, ...]) -> list[dict[str, str | None]]:
    return [finding.as_json() for finding in findings]


@dataclass(frozen=True, slots=True)
class MergeStats:
    """What 16-bit storage did to the deltas, over sampled rows of every touched tensor.

    `changed_fraction`: share of elements whose bytes differ from the base's.
    `retained`: |stored delta . delta| / |delta|^2. Both None where nothing was sampled.
    `quantization_ratio`: |quantization error| / |delta| where the base went through nf4 and back.
    """

    changed_fraction: float | None
    retained: float | None
    quantization_ratio: float | None = None

    def as_json(self) -> dict[str, float | None]:
        """The object under `stats`."""
        body = {"changed_fraction": self.changed_fraction, "retained": self.retained}
        if self.quantization_ratio is not None:
            body["quantization_ratio"] = self.quantization_ratio
        return body


@dataclass(frozen=True, slots=True)
class MergeResult:
    """A finished merge, or with `dry_run` the plan of one (`plan` is then its table)."""

    out: Path
    total: int
    touched: int
    copied: int
    bytes: int
    seconds: float
    device: str
    findings: tuple[Finding, ...]
    stats: MergeStats
    dry_run: bool = False
    plan: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `merge --json` prints."""
        body: dict[str, Any] = {
            "out": str(self.out),
            "tensors": {"total": self.total, "touched": self.touched, "copied": self.copied},
            "bytes": self.bytes,
            "seconds": self.seconds,
            "device": self.device,
            "findings": _findings(self.findings),
            "stats": self.stats.as_json(),
        }
        if self.plan is not None:
            body["plan"] = self.plan
        return body


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that verify found different.

    `max_ulp`: the largest distance in steps of the dtype, None where shapes, dtypes or presence
    differ; `fraction`: share of elements that differ by more than the tolerance; `reason` in words.
    """

    tensor: str
    max_ulp: int | None
    fraction: float
    reason: str

    def as_json(self) -> dict[str, Any]:
        """One entry of `different`."""
        return {
            "tensor": self.tensor,
            "max_ulp": self.max_ulp,
            "fraction": self.fraction,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Whether a merged model is what base and adapter make."""

    ok: bool
    checked: int
    different: tuple[Difference, ...]
    findings: tuple[Finding, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object that `verify --json` prints."""
        return {
            "ok": self.ok,
            "tensors": {"checked": self.checked, "different": len(self.different)},
            "different": [difference.as_json() for difference in self.different],
            "findings": _findings(self.findings),
        }


@dataclass(frozen=True, slots=True)
class ValidateResult:
    """Findings about one artifact; `strict` makes warnings count as errors."""

    findings: tuple[Finding, ...]
    strict: bool = False

    @property
    def ok(self) -> bool:
        """No error, and under `strict` no warning either."""
        bad = {Severity.ERROR, Severity.WARNING} if self.strict else {Severity.ERROR}
        return not any(finding.severity in bad for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The object that `validate --json` prints."""
        return {"ok": self.ok, "findings": _findings(self.findings)}


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One adapted module as `inspect` shows it.

    `shape` is the delta's (out, in); `saving` is m*n / ((m+n)*r), the factor by which the low-rank
    form is smaller than the full delta (None where there is no rank). From the values: the
    Frobenius `norm` of the scaled delta, its `effective_rank`, and `energy[k]`, the share of its
    sum of squares that rank k + 1 keeps.
    """

    module: str
    tuner: str
    rank: int | None
    scaling: float | None
    shape: tuple[int, ...]
    parameters: int
    saving: float | None
    norm: float | None = None
    effective_rank: float | None = None
    energy: tuple[float, ...] | None = None
    nonfinite: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What `inspect` says of an adapter; keys as in contract.md, all JSON-able."""

    path: str
    layout: str
    tuners: dict[str, int]
    base: str | None
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    ranks: dict[str, Any]
    scaling: dict[str, float] | None
    targets: dict[str, int]
    modules: tuple[ModuleRow, ...]
    carried: tuple[str, ...]
    provenance: dict[str, Any]
    share_of_base: float | None
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints for an adapter."""
        rows = [
            {
                "module": row.module,
                "tuner": row.tuner,
                "rank": row.rank,
                "scaling": row.scaling,
                "shape": list(row.shape),
                "parameters": row.parameters,
                "saving": row.saving,
                "norm": row.norm,
                "effective_rank": row.effective_rank,
                "energy": list(row.energy) if row.energy is not None else None,
                "nonfinite": row.nonfinite,
            }
            for row in self.modules
        ]
        return {
            "kind": "adapter",
            "path": self.path,
            "layout": self.layout,
            "tuners": self.tuners,
            "base": self.base,
            "module_count": len(self.modules),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": self.dtypes,
            "ranks": self.ranks,
            "scaling": self.scaling,
            "targets": self.targets,
            "modules": rows,
            "carried": list(self.carried),
            "provenance": self.provenance,
            "share_of_base": self.share_of_base,
            "findings": _findings(self.findings),
        }


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """What `inspect` says of a checkpoint; keys as in contract.md."""

    path: str
    tensor_count: int
    shards: tuple[tuple[str, int], ...]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    quantization: str | None
    tied: tuple[tuple[str, ...], ...]
    architecture: str | None
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints for a checkpoint."""
        return {
            "kind": "checkpoint",
            "path": self.path,
            "tensor_count": self.tensor_count,
            "shards": [{"file": file, "bytes": size} for file, size in self.shards],
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": self.dtypes,
            "quantization": self.quantization,
            "tied": [list(group) for group in self.tied],
            "architecture": self.architecture,
            "findings": _findings(self.findings),
        }
