"""What `pull` and `push` return; `as_json` gives the keys that scripts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.findings import Finding
from adaptool.model.receipt import SCHEMA, OutputEntry, versions


@dataclass(frozen=True, slots=True)
class PullResult:
    """A finished pull, or with `dry_run` what one would bring.

    `sha256` of a file is None where only the bytes would tell: a small file, not pulled yet.
    """

    out: Path
    repo: str
    commit: str
    files: tuple[OutputEntry, ...]
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The object that `pull --json` prints."""
        return {
            "out": str(self.out),
            "repo": self.repo,
            "commit": self.commit,
            "bytes": self.bytes,
            "files": _rows(self.files),
            "findings": [finding.as_json() for finding in self.findings],
            "dry_run": self.dry_run,
        }


@dataclass(frozen=True, slots=True)
class PushResult:
    """A finished push, or with `dry_run` what one would send; there is no commit then."""

    repo: str
    commit: str | None
    url: str | None
    files: tuple[OutputEntry, ...]
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The object that `push --json` prints."""
        return {
            "repo": self.repo,
            "commit": self.commit,
            "url": self.url,
            "bytes": self.bytes,
            "files": _rows(self.files),
            "findings": [finding.as_json() for finding in self.findings],
            "dry_run": self.dry_run,
        }


def _rows(files: tuple[OutputEntry, ...]) -> list[dict[str, Any]]:
    return [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in files]


def pulled_receipt(
    uri: str, repo: str, commit: str, files: tuple[OutputEntry, ...], made: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The receipt of what was pulled.

    Where the artifact brought a receipt of its own (`made`), that stays what it is, so that
    `verify` finds the merge's options; `pulled` stands beside it, and the files are listed anew.
    """
    pulled = {"uri": uri, "repo": repo, "commit": commit}
    outputs = [file.as_json() for file in files]
    if made is not None:
        return {**made, "outputs": outputs, "pulled": pulled}
    return {
        "schema": SCHEMA,
        "command": "pull",
        "outputs": outputs,
        "versions": {"adaptool": versions()["adaptool"]},
        "pulled": pulled,
    }
