"""What an output was made of, as its receipt lists it: inputs, their files, their digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from adaptool.store.addresses import at_commit, repository_of

PACKAGE = "https://pypi.org/project/adaptool"

Receipt = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MaterialFile:
    """A file of an input: its sha256 where that is known, else adaptool's fingerprint of it."""

    name: str
    sha256: str | None
    fingerprint: str | None = None

    @property
    def digest(self) -> Mapping[str, str]:
        """As in-toto's DigestSet; the fingerprint under a name of its own."""
        found = {"sha256": self.sha256, "adaptoolFingerprint1": self.fingerprint}
        return {name: text for name, text in found.items() if text is not None}


@dataclass(frozen=True, slots=True)
class Material:
    """One input: a base, an adapter, a tuned model; `repo` is owner/name where it was pulled."""

    role: str
    name: str
    files: tuple[MaterialFile, ...]
    repo: str | None
    uri: str | None
    commit: str | None
    weight: float | None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Self:
        """From an entry under `inputs`."""
        uri = entry.get("uri")
        return cls(
            str(entry.get("role", "input")),
            str(entry.get("name", "")),
            tuple(_files(entry)),
            repository_of(uri) if uri is not None else None,
            uri,
            entry.get("commit"),
            entry.get("weight"),
        )

    @property
    def pinned(self) -> str | None:
        """The address with the commit in place of a branch."""
        return at_commit(self.uri, self.commit) if self.uri and self.commit else self.uri


def materials(receipt: Receipt) -> tuple[Material, ...]:
    """Every input, in the receipt's order."""
    return tuple(map(Material.of, receipt.get("inputs", ())))


def _files(entry: Mapping[str, Any]) -> Iterator[MaterialFile]:
    shards = entry.get("shards", ())
    is_adapter = entry.get("role") not in {"base", "tuned", "merged"}
    if entry.get("config_sha256") is not None:
        name = "adapter_config.json" if is_adapter else "config.json"
        yield MaterialFile(name, entry["config_sha256"])
    if entry.get("sha256") is not None:
        yield MaterialFile("weights", entry["sha256"])
    for shard in shards:
        yield MaterialFile(shard["name"], shard.get("sha256"), shard.get("fingerprint"))
