"""What each verb returns; `as_json` gives the keys that contract.md fixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptool.findings import Finding, Severity
from adaptool.model.published import Published, destination

ENERGY_SHARES = (0.9, 0.99, 0.999)
"""The shares of a delta's energy that `inspect` gives the rank for."""


def _findings(findings: tuple[Finding, ...]) -> list[dict[str, str | None]]:
    return [finding.as_json() for finding in findings]


@dataclass(frozen=True, slots=True)
class MergeStats:
    """What 16-bit storage did to the deltas, over sampled rows of every touched tensor.

    `changed_fraction`: share of elements whose bytes differ from the base's.
    `retained`: |stored delta . delta| / |delta|^2. Both None where nothing was sampled.
    `quantization_ratio`: |quantization error| / |delta| where the base went through nf4 and back.
    `recoded`: of every weight that was stored in its packed format again, over all its rows,
    (stored delta . delta) / |delta|^2; None where the delta is 0.
    """

    changed_fraction: float | None
    retained: float | None
    quantization_ratio: float | None = None
    recoded: Mapping[str, float | None] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object under `stats`."""
        body: dict[str, Any] = {
            "changed_fraction": self.changed_fraction,
            "retained": self.retained,
        }
        if self.quantization_ratio is not None:
            body["quantization_ratio"] = self.quantization_ratio
        if self.recoded:
            body["recoded"] = dict(self.recoded)
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
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `merge --json` prints."""
        body: dict[str, Any] = {
            **destination(self.out, self.published),
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
    """Findings about the artifact at `path`; `strict` makes warnings count as errors."""

    findings: tuple[Finding, ...]
    strict: bool = False
    path: str = ""

    @property
    def ok(self) -> bool:
        """No error, and under `strict` no warning either."""
        bad = {Severity.ERROR, Severity.WARNING} if self.strict else {Severity.ERROR}
        return not any(finding.severity in bad for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The object that `validate --json` prints."""
        return {"path": self.path, "ok": self.ok, "findings": _findings(self.findings)}


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One adapted module as `inspect` shows it.

    `shape` is the delta's (out, in); `saving` is m*n / ((m+n)*r), the factor by which the low-rank
    form is smaller than the full delta (None where there is no rank). From the values: the
    Frobenius `norm` of the scaled delta, its `effective_rank`, and `energy[k]`, the share of its
    sum of squares that rank k + 1 keeps; `base_norm` is that of the weights it is added to.
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
    base_norm: float | None = None

    @property
    def target(self) -> str:
        """The last name of the module's path, with the number after it (`to_out.0`)."""
        head, _, last = self.module.rpartition(".")
        return f"{head.rpartition('.')[2]}.{last}" if last.isdecimal() and head else last

    @property
    def relative_norm(self) -> float | None:
        """|delta| / |W|; None where either is unknown or W is zero."""
        return self.norm / self.base_norm if self.norm is not None and self.base_norm else None

    def rank_at(self, share: float) -> int | None:
        """The smallest rank that keeps `share` of the energy; 0 for a delta of zeros."""
        if self.energy is None:
            return None
        if not self.norm:
            return 0
        reached = (rank for rank, kept in enumerate(self.energy, start=1) if kept >= share)
        return next(reached, len(self.energy))

    def as_json(self) -> dict[str, Any]:
        """One entry of `modules`."""
        known = self.energy is not None
        return {
            "module": self.module,
            "tuner": self.tuner,
            "rank": self.rank,
            "scaling": self.scaling,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "saving": self.saving,
            "norm": self.norm,
            "base_norm": self.base_norm,
            "relative_norm": self.relative_norm,
            "effective_rank": self.effective_rank,
            "rank_at": {str(at): self.rank_at(at) for at in ENERGY_SHARES} if known else None,
            "energy": list(self.energy) if self.energy is not None else None,
            "nonfinite": self.nonfinite,
        }


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
    tuner_properties: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints for an adapter."""
        return {
            "kind": "adapter",
            "path": self.path,
            "layout": self.layout,
            "tuners": self.tuners,
            "tuner_properties": self.tuner_properties,
            "base": self.base,
            "module_count": len(self.modules),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": self.dtypes,
            "ranks": self.ranks,
            "scaling": self.scaling,
            "targets": self.targets,
            "modules": [row.as_json() for row in self.modules],
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
