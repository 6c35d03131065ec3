"""What `diff` returns; `as_json` gives the keys that contract.md fixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptool.findings import Finding


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One module or tensor that both sides have.

    `kind` says what was compared: "delta" (what the factors make), "roles" (the tensors of a tuner
    whose delta is no product of two factors), "tensor" (elements). `relative_error` is |a - b| /
    |a|, exactly 0 for equal ones. None where it is not defined: one side is zero or not finite, or
    the two cannot be compared.
    """

    module: str
    kind: str
    cosine: float | None
    relative_error: float | None

    def as_json(self) -> dict[str, Any]:
        """One entry of `modules`."""
        return {
            "module": self.module,
            "kind": self.kind,
            "cosine": self.cosine,
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True, slots=True)
class StructureRow:
    """A field of the configs, or a property of the files, that differs; None: absent."""

    field: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class DiffResult:
    """Two adapters, or two checkpoints, compared module by module.

    `cosine` and `relative_error` are over everything at once, a module that one side lacks counted
    as zero there: over the deltas of adapters, over the tensors of checkpoints.
    """

    kind: str
    modules: tuple[DiffRow, ...]
    cosine: float | None
    relative_error: float | None
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    structure: tuple[StructureRow, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every number is the same; structure and dtypes may still differ."""
        same = all(row.relative_error == 0 for row in self.modules)
        return same and not self.only_in_a and not self.only_in_b

    def as_json(self) -> dict[str, Any]:
        """The object that `diff --json` prints."""
        return {
            "kind": self.kind,
            "equal": self.equal,
            "modules": [row.as_json() for row in self.modules],
            "cosine": self.cosine,
            "relative_error": self.relative_error,
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "structure": [{"field": row.field, "a": row.a, "b": row.b} for row in self.structure],
            "findings": [finding.as_json() for finding in self.findings],
        }


def config_rows(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> list[StructureRow]:
    """The fields in which two configs differ, sorted; the order in a list of names is none."""
    one, other = a or {}, b or {}
    return [
        StructureRow(name, one.get(name), other.get(name))
        for name in sorted({*one, *other})
        if _ordered(one.get(name)) != _ordered(other.get(name))
    ]


def _ordered(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return sorted(value)
    return value
